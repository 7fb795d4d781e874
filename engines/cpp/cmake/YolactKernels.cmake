# The kernels, compiled, as a C++ source with them in it.
include_guard()

set(YOLACT_CMAKE_DIR ${CMAKE_CURRENT_LIST_DIR})
set(YOLACT_KERNEL_DIR ${CMAKE_CURRENT_LIST_DIR}/../../cuda/kernels)
# Code for one runs on later ones of the same major version, but for Jetsons: 87 is Orin, 101 and 110 are Thor to earlier and later CUDAs.
set(YOLACT_DEFAULT_ARCHITECTURES 75 80 86 87 89 90 100 101 103 110 120)

# Options of nvcc for what CMAKE_CUDA_ARCHITECTURES names, or for the usual ones that it knows, and the least of them once more as PTX, which
# the driver compiles for any other GPU that is newer.
function(yolact_deploy_gencode nvcc result)
    if(CMAKE_CUDA_ARCHITECTURES STREQUAL "native")
        set(${result} -arch=native PARENT_SCOPE)
        return()
    endif()
    set(wanted ${CMAKE_CUDA_ARCHITECTURES})
    if(NOT wanted OR wanted MATCHES "^all")
        execute_process(COMMAND ${nvcc} --list-gpu-code OUTPUT_VARIABLE known COMMAND_ERROR_IS_FATAL ANY)
        set(wanted)
        foreach(architecture IN LISTS YOLACT_DEFAULT_ARCHITECTURES)
            if(known MATCHES "sm_${architecture}\n")
                list(APPEND wanted ${architecture})
            endif()
        endforeach()
    endif()
    list(TRANSFORM wanted REPLACE "-(real|virtual)$" "")
    list(SORT wanted COMPARE NATURAL)
    set(options)
    foreach(architecture IN LISTS wanted)
        list(APPEND options -gencode arch=compute_${architecture},code=sm_${architecture})
    endforeach()
    list(GET wanted 0 least)
    list(APPEND options -gencode arch=compute_${least},code=compute_${least})
    set(${result} ${options} PARENT_SCOPE)
endfunction()

# Sets `result` to the source to compile with the library.
function(yolact_deploy_kernels result)
    file(GLOB headers CONFIGURE_DEPENDS ${YOLACT_KERNEL_DIR}/*.cuh)
    set(images)
    foreach(image IN LISTS YOLACT_DEPLOY_KERNEL_IMAGES)
        get_filename_component(image ${image} ABSOLUTE BASE_DIR ${CMAKE_SOURCE_DIR})
        list(APPEND images ${image})
        if(NOT EXISTS ${image})
            message(FATAL_ERROR "YOLACT_DEPLOY_KERNEL_IMAGES names ${image}, which does not exist. `yolact-deploy sdk --kernels` writes such a file.")
        endif()
    endforeach()
    if(NOT images)
        find_package(CUDAToolkit QUIET)
        find_program(YOLACT_NVCC NAMES nvcc HINTS ${CUDAToolkit_BIN_DIR} DOC "CUDA's compiler")
        if(NOT YOLACT_NVCC)
            message(FATAL_ERROR
                "nvcc, which compiles the kernels, was not found. Set CUDAToolkit_ROOT, or compile them without a CUDA toolkit: "
                "`yolact-deploy sdk --kernels kernels.cubin --sm 89`, and set YOLACT_DEPLOY_KERNEL_IMAGES to that file.")
        endif()
        yolact_deploy_gencode(${YOLACT_NVCC} gencode)
        set(images ${CMAKE_CURRENT_BINARY_DIR}/kernels.fatbin)
        set(unit ${CMAKE_CURRENT_BINARY_DIR}/kernels.cu)
        file(CONFIGURE OUTPUT ${unit} CONTENT "#include \"all.cuh\"\n")
        set(host)
        if(CMAKE_CUDA_HOST_COMPILER)
            set(host -ccbin ${CMAKE_CUDA_HOST_COMPILER})
        endif()
        # No fast math: what is computed here equals what the Python package computes, bit for bit.
        add_custom_command(OUTPUT ${images}
            COMMAND ${YOLACT_NVCC} -fatbin -Xfatbin -compress-all -std=c++17 ${host} ${gencode} -I ${YOLACT_KERNEL_DIR} -o ${images} ${unit}
            DEPENDS ${headers} ${unit}
            COMMENT "Compiling the CUDA kernels"
            COMMAND_EXPAND_LISTS VERBATIM)
    endif()
    set(source ${CMAKE_CURRENT_BINARY_DIR}/kernel_images.cpp)
    add_custom_command(OUTPUT ${source}
        COMMAND ${CMAKE_COMMAND} "-DIMAGES=${images}" -DSOURCE=${source} -DCOMPILER=${CMAKE_CXX_COMPILER_ID} -P ${YOLACT_CMAKE_DIR}/embed.cmake
        DEPENDS ${images} ${YOLACT_CMAKE_DIR}/embed.cmake
        COMMENT "Embedding the kernels"
        VERBATIM)
    set_source_files_properties(${source} PROPERTIES OBJECT_DEPENDS "${images}")
    set(${result} ${source} PARENT_SCOPE)
endfunction()
