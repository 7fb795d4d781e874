// Of the real header, which also declares the builder, only what NvInferRuntime.h declares.
#pragma once
#include "NvInferRuntime.h"
