// What a block of each kernel is: its threads, and its share of the work. stages.py, workspace.py, preprocess.py and draw.py in
// yolact_deploy/engines/cuda mirror these numbers.
#pragma once

namespace yolact {

constexpr int WARP = 32;

constexpr int PREPROCESS_WIDTH = 32, PREPROCESS_HEIGHT = 8;  // output pixels
constexpr int PREPROCESS_THREADS = PREPROCESS_WIDTH * PREPROCESS_HEIGHT;

constexpr int SELECT_THREADS = 256;
constexpr int SELECT_LANES = 8;  // that share a prior
constexpr int SELECT_PRIORS = SELECT_THREADS / SELECT_LANES;

constexpr int RANK_THREADS = 256;
constexpr int LARGEST_K = 1024;  // the most that are ranked of one list

constexpr int SUPPRESS_THREADS = 512;

constexpr int GREEDY_THREADS = 512;

constexpr int BEST_THREADS = 1024;

constexpr int GIVEN_THREADS = 256;
constexpr int GIVEN_BLOCKS = 8;  // that share a mask

constexpr int ASSEMBLE_THREADS = 128;
constexpr int ASSEMBLE_WIDTH = 16, ASSEMBLE_HEIGHT = 8;  // samples of a tile: 2 x 2 warps of 8 x 4
constexpr int ASSEMBLE_DETECTIONS = 32;
constexpr int MOST_PROTOTYPES = 64;

constexpr int RESCORE_THREADS = 128;

constexpr int BITS_THREADS = 256;
constexpr int BITS_BLOCKS = 32;  // that share a mask

constexpr int RLE_THREADS = 256;

constexpr int DELIVER_THREADS = 256;
constexpr int DELIVER_BLOCKS = 64;

constexpr int DRAW_THREADS = 256;  // pixels

}  // namespace yolact
