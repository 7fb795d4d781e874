// The stand-in's plans: what engine there is to play.
//
// 64 bytes of head as a real plan has them (its mark counts here, ftrt, ptrt, or vtrt for TensorRT-RTX), then lines of text, then data:
//
//   yolact stand-in plan 1
//   version 11.4.0.106              that wrote it; another one's is refused, except by a lean runtime of that version
//   host_code 0|1                   1 is refused unless the runtime allows it
//   weights BYTES                   GPU memory of the engine (0)
//   memory BYTES                    GPU memory of each execution context (0)
//   profile NAME MIN OPT MAX        batches of an input; none for a static engine
//   tensor NAME INPUT|OUTPUT TYPE FORMAT D0 D1 ...   a D0 of -1 is the batch; TYPE and FORMAT as TensorRT names them, FLOAT and LINEAR
//   host NAME                       this tensor lies in host memory
//   rows N                          recorded rows of each output
//   data NAME OFFSET BYTES          where those of an output lie, from the first byte after `end`
//   choose by index|input|value     picture i of a batch gets row i % N; or its first byte % N; or its first number, rounded, modulo N
//   compute mean                    instead of rows, output [B, C] of an input FLOAT [B, ...] is mean * (1 + column) / C in float32, where
//                                   mean is the float32 of a float64 sum from first to last, divided by the count
//   capturable 0|1                  0 cannot be captured into a CUDA graph
//   fail run N                      run N of the engine, from 1, fails as a kernel does, with CUDA_ERROR_LAUNCH_FAILED
//   fail enqueue N                  call N of enqueueV3, from 1, returns false
//   warning TEXT                    logged when the engine is loaded
//   end
#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <vector>

namespace standin {

struct Tensor {
    std::string name;
    bool input = false, host = false;
    int type = 0, format = 0;
    std::vector<int64_t> sizes;
    std::size_t data = 0;     // of an output: where its rows begin
    bool recorded = false;    // whether it has rows
    bool dynamic() const { return sizes[0] < 0; }
    std::size_t row_bytes() const;
};

enum class Choice { kINDEX, kINPUT, kVALUE };

struct Plan {
    std::string version;
    bool host_code = false, mean = false, capturable = true;
    std::size_t weights = 0, memory = 0, rows = 1;
    Choice choice = Choice::kINDEX;
    std::map<std::string, std::array<int64_t, 3>> profiles;
    std::vector<Tensor> tensors;
    std::vector<std::string> warnings;
    std::set<long> failing_runs, failing_enqueues;
    std::vector<unsigned char> data;

    const Tensor *find(const char *name) const;
    const Tensor &first_input() const;
    bool dynamic() const { return first_input().dynamic(); }
    // The batch sizes of an input: smallest, best, largest.
    std::array<int64_t, 3> profile(const Tensor &input) const;
    // The recorded row of picture `index` of a batch, whose input begins at `input`.
    std::size_t row(std::size_t index, const unsigned char *input) const;
};

// Read a plan whose head begins with one of `marks`; std::runtime_error tells what is wrong with it.
Plan read_plan(const void *blob, std::size_t size, const std::vector<std::string> &marks);

} // namespace standin
