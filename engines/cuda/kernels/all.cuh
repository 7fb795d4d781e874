// All kernels, as one unit to compile.
#pragma once

#include "preprocess.cuh"
#include "select.cuh"
#include "rank.cuh"
#include "suppress.cuh"
#include "greedy.cuh"
#include "best.cuh"
#include "given.cuh"
#include "assemble.cuh"
#include "rescore.cuh"
#include "rle.cuh"
#include "bits.cuh"
#include "deliver.cuh"
#include "draw.cuh"
