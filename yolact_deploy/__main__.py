"""``python -m yolact_deploy``: the command line, for torchrun and where scripts are not on the path."""

from yolact_deploy.cli import main

if __name__ == "__main__":
    main()
