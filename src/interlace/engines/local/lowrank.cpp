// The operation LowRank: what adapters add to the linear layers of one input, each row with its own adapter, read where
// it lies. `kernel.py` has it compiled where somebody asks for it; `fused.py` says what the inputs mean.

#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

#include <oneapi/tbb/parallel_for.h>
#include <openvino/core/extension.hpp>
#include <openvino/core/op_extension.hpp>
#include <openvino/op/op.hpp>

namespace {

constexpr int64_t kMostRank = 1024;
constexpr size_t kFirst = 3;  // inputs before the layers' own outputs: x, rows, table

struct Entry {
    int64_t address, rank, bytes;  // of A [rank, inputs] and, behind it, B transposed [rank, outputs]; of one number
};

// 16 floats at once: compilers lower it to what the processor has.
typedef float Floats __attribute__((vector_size(64)));
typedef uint32_t Words __attribute__((vector_size(64)));
typedef uint16_t Halves __attribute__((vector_size(32)));
constexpr int64_t kLanes = 16;

// Bytes ahead of what is read. What a row reads lies in one piece, but too short a one for the processor to see what
// comes next: half again as fast in float32, three times as fast in bfloat16. Past the end lies the next layer.
constexpr int64_t kAhead = 4096;

template <class W>
void fetch(const W* at) {
    if (reinterpret_cast<uintptr_t>(at) % 64 < kLanes * sizeof(W))  // once for each line of the cache
        __builtin_prefetch(reinterpret_cast<const char*>(at) + kAhead);
}

Floats wide(const float* from) {
    Floats values;
    std::memcpy(&values, from, sizeof(values));
    return values;
}

Floats wide(const uint16_t* from) {  // bfloat16
    Halves halves;
    std::memcpy(&halves, from, sizeof(halves));
    return (Floats)(__builtin_convertvector(halves, Words) << 16);
}

float one(const float* from) { return *from; }

float one(const uint16_t* from) {
    const uint32_t bits = uint32_t(*from) << 16;
    float value;
    std::memcpy(&value, &bits, sizeof(value));
    return value;
}

float total(Floats values) {
    float sum = 0;
    for (int64_t lane = 0; lane < kLanes; ++lane) sum += values[lane];
    return sum;
}

// A row of A times x. Four sums at once: one alone would wait for itself.
template <class W>
float dot(const W* a, const float* x, int64_t inputs) {
    Floats s0 = {}, s1 = {}, s2 = {}, s3 = {};
    int64_t i = 0;
    for (; i + 4 * kLanes <= inputs; i += 4 * kLanes) {
        for (int64_t k = 0; k < 4; ++k) fetch(a + i + k * kLanes);
        s0 += wide(a + i) * wide(x + i);
        s1 += wide(a + i + kLanes) * wide(x + i + kLanes);
        s2 += wide(a + i + 2 * kLanes) * wide(x + i + 2 * kLanes);
        s3 += wide(a + i + 3 * kLanes) * wide(x + i + 3 * kLanes);
    }
    for (; i + kLanes <= inputs; i += kLanes) s0 += wide(a + i) * wide(x + i);
    float sum = total((s0 + s1) + (s2 + s3));
    for (; i < inputs; ++i) sum += one(a + i) * x[i];
    return sum;
}

// out = y + h b
template <class W>
void add(const W* b, float h, const float* y, float* out, int64_t outputs) {
    int64_t j = 0;
    for (; j + kLanes <= outputs; j += kLanes) {
        fetch(b + j);
        const Floats sum = wide(y + j) + h * wide(b + j);
        std::memcpy(out + j, &sum, sizeof(sum));
    }
    for (; j < outputs; ++j) out[j] = y[j] + h * one(b + j);
}

template <class W>
void row(const Entry& entry, const float* x, const float* y, float* out, int64_t inputs, int64_t outputs) {
    float narrow[kMostRank];
    const W* at = reinterpret_cast<const W*>(entry.address);
    for (int64_t r = 0; r < entry.rank; ++r, at += inputs) narrow[r] = dot(at, x, inputs);
    for (int64_t r = 0; r < entry.rank; ++r, at += outputs, y = out) add(at, narrow[r], y, out, outputs);
}

class LowRank : public ov::op::Op {
public:
    OPENVINO_OP("LowRank", "interlace");
    LowRank() = default;
    LowRank(const ov::OutputVector& arguments, std::vector<int64_t> layers) : Op(arguments), layers_(std::move(layers)) {
        constructor_validate_and_infer_types();
    }

    void validate_and_infer_types() override {
        for (size_t k = kFirst; k < get_input_size(); ++k)
            set_output_type(k - kFirst, ov::element::f32, get_input_partial_shape(k));
    }

    std::shared_ptr<ov::Node> clone_with_new_inputs(const ov::OutputVector& arguments) const override {
        return std::make_shared<LowRank>(arguments, layers_);
    }

    bool visit_attributes(ov::AttributeVisitor& visitor) override {
        visitor.on_attribute("layers", layers_);
        return true;
    }

    bool has_evaluate() const override { return true; }

    bool evaluate(ov::TensorVector& outputs, const ov::TensorVector& inputs) const override {
        const int64_t rows = inputs[0].get_shape()[0], width = inputs[0].get_shape()[1];
        const int64_t table_width = inputs[2].get_shape()[1] * sizeof(int32_t) / sizeof(Entry);
        const float* x = inputs[0].data<float>();
        const int32_t* adapter = inputs[1].data<int32_t>();
        const Entry* table = reinterpret_cast<const Entry*>(inputs[2].data<int32_t>());
        struct Layer {
            int64_t column, outputs;
            const float* y;
            float* out;
        };
        std::vector<Layer> layers;
        for (size_t k = 0; k + kFirst < inputs.size(); ++k) {
            const auto& y = inputs[k + kFirst];
            layers.push_back({layers_[k], int64_t(y.get_shape()[1]), y.data<float>(), outputs[k].data<float>()});
        }
        const auto some = [&](const tbb::blocked_range<int64_t>& range) {
            for (const auto& layer : layers)
                for (int64_t t = range.begin(); t < range.end(); ++t) {
                    const float *from = x + t * width, *y = layer.y + t * layer.outputs;
                    float* out = layer.out + t * layer.outputs;
                    const Entry* entry = adapter[t] < 0 ? nullptr : table + adapter[t] * table_width + layer.column;
                    if (!entry || !entry->rank)
                        std::memcpy(out, y, layer.outputs * sizeof(float));
                    else if (entry->bytes == 2)
                        row<uint16_t>(*entry, from, y, out, width, layer.outputs);
                    else
                        row<float>(*entry, from, y, out, width, layer.outputs);
                }
        };
        tbb::parallel_for(tbb::blocked_range<int64_t>(0, rows), some, tbb::static_partitioner());
        return true;
    }

private:
    std::vector<int64_t> layers_;  // columns of the table, one for each layer
};

}  // namespace

OPENVINO_CREATE_EXTENSIONS(std::vector<ov::Extension::Ptr>({std::make_shared<ov::OpExtension<LowRank>>()}));
