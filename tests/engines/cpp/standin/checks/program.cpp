// Scenarios of the stand-in itself: `program NAME ENGINE ...`; 0 where all is as it should be.
#include <algorithm>
#include <cstring>
#include <functional>
#include <map>
#include <thread>
#include "harness.hpp"

namespace {

using Words = std::vector<std::string>;
using Bytes = std::vector<char>;

void write(const std::string &path, const Bytes &bytes) {
    std::ofstream(path, std::ios::binary).write(bytes.data(), static_cast<long>(bytes.size()));
}

void write_outputs(Session &session, std::size_t batch, const std::string &folder) {
    for (std::size_t index = 0; index < session.names.size(); index++)
        if (!session.inputs[index]) write(folder + "/" + session.names[index], session.buffers[index]->read(session.rows[index] * batch));
}

// ENGINE INPUT FOLDER: a batch that is the whole file, run plainly; the outputs go to FOLDER, and what the engine saw is the file.
void run(const Words &words) {
    const Bytes input = read_file(words[1]);
    Session session(words[0]);
    const std::size_t batch = input.size() / session.rows[0];
    session.set_batch(static_cast<int>(batch));
    session.buffers[0]->fill(input);
    session.enqueue();
    const Bytes early = session.buffers[1]->read(4);
    CHECK(std::count(early.begin(), early.end(), '\xa5') == 4); // queued, not run
    CHECK(standin_count(0) == 1 && standin_count(2) == 0);
    CHECK(session.stream.wait() == 0 && standin_count(2) == 1);
    write_outputs(session, batch, words[2]);
    Bytes seen(input.size());
    const long size = standin_last_input(seen.data(), static_cast<long>(seen.size()));
    CHECK(size == 0 || (size == static_cast<long>(input.size()) && seen == input));
    CHECK(session.logger.errors.empty());
}

// ENGINE INPUT FOLDER: as `run`, from the third launch of a graph; the input changes after the capture.
void replay(const Words &words) {
    const Bytes input = read_file(words[1]);
    Session session(words[0]);
    const std::size_t batch = input.size() / session.rows[0];
    session.set_batch(static_cast<int>(batch));
    session.buffers[0]->fill(Bytes(input.size(), 0));
    session.enqueue();
    CHECK(session.stream.wait() == 0);
    void *const graph = session.capture();
    CHECK(graph && standin_count(1) == 1 && standin_count(2) == 1);
    session.buffers[0]->fill(input);
    for (int launch = 0; launch < 3; launch++) CHECK(cuda("cuGraphLaunch", graph, session.stream.handle) == 0);
    CHECK(session.stream.wait() == 0 && standin_count(2) == 4);
    write_outputs(session, batch, words[2]);
    CHECK(cuda("cuGraphExecDestroy", graph) == 0);
    CHECK(session.logger.errors.empty());
}

// ENGINE TOLD: it is refused with an error that holds TOLD.
void refused(const Words &words) {
    Session session(words[0]);
    if (!session.engine) CHECK(session.logger.errors.size() == 1);
    else CHECK(!session.context);
    if (!session.logger.last(words[1])) std::fprintf(stderr, "told: %s\n", session.logger.errors.back().c_str()), std::exit(1);
}

// ENGINE RUNTIME: host code only where it is allowed, another version only by a lean runtime.
void allowances(const Words &words) {
    const Bytes plan = read_file(words[0]);
    Logger logger;
    const std::unique_ptr<nvinfer1::IRuntime> runtime(nvinfer1::createInferRuntime(logger));
    CHECK(!runtime->loadRuntime((words[1] + ".not").c_str()) && logger.last("Unable to open library"));
    const std::unique_ptr<nvinfer1::IRuntime> lean(runtime->loadRuntime(words[1].c_str()));
    CHECK(lean && !runtime->deserializeCudaEngine(plan.data(), plan.size()) && logger.last("was made by version 10.3.0.26"));
    CHECK(!lean->deserializeCudaEngine(plan.data(), plan.size()) && logger.last("host code"));
    lean->setEngineHostCodeAllowed(true);
    const std::unique_ptr<nvinfer1::ICudaEngine> engine(lean->deserializeCudaEngine(plan.data(), plan.size()));
    CHECK(engine && standin_live(0) == 2 && standin_live(1) == 1);
    CHECK(logger.others.back() == "this is a warning");
}

// ENGINE, dynamic 1:2:4: what a caller can do wrong.
void wrong_calls(const Words &words) {
    Session session(words[0]);
    nvinfer1::Dims dims = session.shape;
    for (const int batch : {0, 5, -1}) {
        dims.d[0] = batch;
        CHECK(!session.context->setInputShape("images", dims) && misused("outside the optimization profile"));
    }
    dims.d[0] = 2, dims.d[1]++;
    CHECK(!session.context->setInputShape("images", dims) && misused("outside the optimization profile"));
    dims.d[1]--, dims.nbDims--;
    CHECK(!session.context->setInputShape("images", dims) && misused("outside the optimization profile"));
    CHECK(!session.context->setInputShape("boxes", session.shape) && misused("there is no input boxes"));
    CHECK(!session.context->enqueueV3(session.stream.handle) && misused("no shape is set for images"));
    CHECK(!session.context->setTensorAddress("images", nullptr) && misused("is null"));
    CHECK(!session.context->setTensorAddress("boxes", static_cast<char *>(session.buffers[1]->address) + 16) && misused("multiple of 256"));
    CHECK(!session.context->setTensorAddress("other", session.buffers[1]->address) && misused("there is no tensor other"));
    CHECK(!session.context->setOptimizationProfileAsync(1, session.stream.handle) && misused("there is no profile 1"));
    CHECK(session.engine->getTensorShape("other").nbDims == -1 && misused("there is no tensor other"));
    CHECK(!session.engine->getIOTensorName(99) && misused("there is no tensor 99"));
    const auto second = session.make_context();
    CHECK(!second->setInputShape("images", session.shape) && misused("no optimization profile is set"));
    CHECK(second->setOptimizationProfileAsync(0, session.stream.handle) && second->setInputShape("images", session.shape));
    CHECK(!second->enqueueV3(session.stream.handle) && misused("no address is set for images"));
    const Stream other;
    for (std::size_t index = 0; index < session.names.size(); index++)
        CHECK(second->setTensorAddress(session.names[index].c_str(), session.buffers[index]->address));
    CHECK(!second->enqueueV3(other.handle) && misused("not reached on its own stream"));
    CHECK(session.stream.wait() == 0 && second->enqueueV3(other.handle) && other.wait() == 0);
    session.set_batch(3);
    CHECK(!session.capture() && misused("captured before a plain run"));
    session.enqueue();
    CHECK(session.stream.wait() == 0);
    void *const graph = session.capture();
    CHECK(graph && cuda("cuGraphExecDestroy", graph) == 0);
}

// ENGINE: memory that is gone when the stream gets there.
void freed_memory(const Words &words) {
    Session session(words[0]);
    session.set_batch(1);
    session.enqueue();
    session.buffers[1].reset();
    CHECK(session.stream.wait() == 700 && misused("was gone or too small"));
    session.buffers[1] = nullptr;
    std::exit(0); // nothing can be given back any more
}

// ENGINE: a context, an engine and a runtime that end too early.
void early_ends(const Words &words) {
    auto session = std::make_unique<Session>(words[0]);
    session->set_batch(1);
    session->enqueue();
    session->context.reset();
    CHECK(misused("destroyed before its queued runs were reached"));
    CHECK(session->stream.wait() == 700 && misused("after its execution context had been destroyed"));
    std::exit(0);
}

void wrong_order(const Words &words) {
    Session session(words[0]);
    session.runtime.reset();
    CHECK(misused("a runtime was destroyed before its engines"));
    session.engine.reset();
    CHECK(misused("an engine was destroyed before its execution contexts"));
    session.context.reset();
    CHECK(standin_live(0) + standin_live(1) + standin_live(2) == 0);
}

// ENGINE, whose context is used by several threads at once.
void threads(const Words &words) {
    Session session(words[0]);
    session.set_batch(1);
    std::vector<std::thread> started;
    for (int index = 0; index < 4; index++)
        started.emplace_back([&] {
            for (int turn = 0; turn < 20; turn++) session.context->setTensorAddress("images", session.buffers[0]->address);
        });
    for (std::thread &one : started) one.join();
    CHECK(standin_misuse(nullptr, 0) > 0 && misuse().find("two threads at once") != std::string::npos);
    standin_forget();
}

// ENGINE: contexts of an engine of its own for each thread, which is as it should be.
void many_contexts(const Words &words) {
    Session session(words[0]);
    std::vector<std::thread> started;
    for (int index = 0; index < 4; index++)
        started.emplace_back([&] {
            void *const context = [] { void *found = nullptr; cuda("cuDevicePrimaryCtxRetain", &found, 0); return found; }();
            cuda("cuCtxPushCurrent_v2", context);
            {
                const Stream stream;
                const auto own = session.make_context();
                std::vector<std::unique_ptr<Buffer>> buffers;
                for (std::size_t at = 0; at < session.names.size(); at++) {
                    buffers.push_back(std::make_unique<Buffer>(session.rows[at] * session.largest()));
                    CHECK(own->setTensorAddress(session.names[at].c_str(), buffers[at]->address));
                }
                CHECK(own->setOptimizationProfileAsync(0, stream.handle) && stream.wait() == 0);
                for (int turn = 0; turn < 20; turn++) {
                    nvinfer1::Dims dims = session.shape;
                    dims.d[0] = 1 + turn % 4;
                    CHECK(own->setInputShape("images", dims) && own->enqueueV3(stream.handle) && stream.wait() == 0);
                }
            }
            cuda("cuCtxPopCurrent_v2", static_cast<void **>(nullptr));
            cuda("cuDevicePrimaryCtxRelease_v2", 0);
        });
    for (std::thread &one : started) one.join();
    CHECK(standin_count(2) == 80);
}

// ENGINE, with `fail enqueue 2` and `fail run 3`.
void failures(const Words &words) {
    Session session(words[0]);
    session.set_batch(1);
    session.enqueue();
    CHECK(!session.context->enqueueV3(session.stream.handle) && session.logger.last("the plan says so"));
    session.enqueue();
    CHECK(session.stream.wait() == 0);
    session.enqueue(), session.enqueue();
    CHECK(session.stream.wait() == 719 && standin_count(2) == 3);
    session.context.reset();
    CHECK(standin_misuse(nullptr, 0) == 0);
    std::exit(0);
}

// ENGINE, with `capturable 0`: runs, and spoils a capture.
void not_capturable(const Words &words) {
    Session session(words[0]);
    session.set_batch(1);
    session.enqueue();
    CHECK(session.stream.wait() == 0);
#ifdef TRT_MAJOR_RTX
    CHECK(!session.context->isStreamCapturable(session.stream.handle));
#endif
    CHECK(!session.capture() && session.logger.last("not permitted"));
    session.enqueue();
    CHECK(session.stream.wait() == 0 && standin_count(2) == 2);
}

void version(const Words &words) {
    CHECK(std::to_string(getInferLibVersion()) == words[0]);
#if NV_TENSORRT_MAJOR >= 10 || defined(TRT_MAJOR_RTX)
    CHECK(getInferLibMajorVersion() == NV_TENSORRT_MAJOR && getInferLibMinorVersion() == NV_TENSORRT_MINOR);
    CHECK(getInferLibPatchVersion() == NV_TENSORRT_PATCH && getInferLibBuildVersion() == NV_TENSORRT_BUILD);
#endif
}

// KERNEL: a kernel of the library that the driver's stand-in was given.
void kernels(const Words &words) {
    void *module = nullptr, *function = nullptr;
    CHECK(cuda("cuModuleLoadData", &module, static_cast<const void *>("STUB 89")) == 0);
    std::size_t offset = 1, size = 0;
    CHECK(cuda("cuModuleGetFunction", &function, module, words[0].c_str()) == 0);
    CHECK(cuda("cuFuncGetParamInfo", function, std::size_t{0}, &offset, &size) == 0 && offset == 0 && size > 8);
    CHECK(cuda("cuModuleUnload", module) == 0);
}

void no_gpu(const Words &) {
    Logger logger;
    CHECK(!nvinfer1::createInferRuntime(logger) && logger.last("CUDA initialization failure with error: 100"));
}

const std::map<std::string, void (*)(const Words &)> kSCENARIOS = {
    {"run", run}, {"replay", replay}, {"refused", refused}, {"allowances", allowances}, {"wrong_calls", wrong_calls},
    {"freed_memory", freed_memory}, {"early_ends", early_ends}, {"wrong_order", wrong_order}, {"threads", threads},
    {"many_contexts", many_contexts}, {"failures", failures}, {"not_capturable", not_capturable}, {"version", version},
    {"kernels", kernels},
};

} // namespace

int main(int count, char **arguments) {
    CHECK(count >= 2);
    const std::string name = arguments[1];
    const Words words(arguments + 2, arguments + count);
    if (name == "no_gpu") return no_gpu(words), 0;
    {
        const Gpu gpu;
        kSCENARIOS.at(name)(words);
        CHECK(standin_misuse(nullptr, 0) == 0);
        CHECK(standin_live(0) + standin_live(1) + standin_live(2) == 0);
        long left = 0;
        for (int kind = 0; kind < 7; kind++) left += cuda("stub_cuda_live", kind);
        CHECK(left == 0);
    }
    return 0;
}
