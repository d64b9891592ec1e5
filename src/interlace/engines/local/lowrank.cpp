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

float wide(float value) { return value; }

float wide(uint16_t value) {  // bfloat16
    const uint32_t bits = uint32_t(value) << 16;
    float result;
    std::memcpy(&result, &bits, sizeof(result));
    return result;
}

// narrow = A x, four rows of A at once: sums of one row alone would wait for each other.
template <class W>
void down(const W* a, const float* x, float* narrow, int64_t rank, int64_t inputs) {
    int64_t r = 0;
    for (; r + 4 <= rank; r += 4, a += 4 * inputs) {
        float s0 = 0, s1 = 0, s2 = 0, s3 = 0;
#pragma omp simd reduction(+ : s0, s1, s2, s3)
        for (int64_t i = 0; i < inputs; ++i) {
            s0 += wide(a[i]) * x[i];
            s1 += wide(a[i + inputs]) * x[i];
            s2 += wide(a[i + 2 * inputs]) * x[i];
            s3 += wide(a[i + 3 * inputs]) * x[i];
        }
        narrow[r] = s0, narrow[r + 1] = s1, narrow[r + 2] = s2, narrow[r + 3] = s3;
    }
    for (; r < rank; ++r, a += inputs) {
        float sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t i = 0; i < inputs; ++i) sum += wide(a[i]) * x[i];
        narrow[r] = sum;
    }
}

// out = y + B narrow.
template <class W>
void up(const W* b, const float* narrow, const float* y, float* out, int64_t rank, int64_t outputs) {
    int64_t r = 0;
    for (; r + 4 <= rank; r += 4, b += 4 * outputs, y = out) {
        const float h0 = narrow[r], h1 = narrow[r + 1], h2 = narrow[r + 2], h3 = narrow[r + 3];
#pragma omp simd
        for (int64_t j = 0; j < outputs; ++j)
            out[j] = y[j] + ((h0 * wide(b[j]) + h1 * wide(b[j + outputs])) +
                             (h2 * wide(b[j + 2 * outputs]) + h3 * wide(b[j + 3 * outputs])));
    }
    for (; r < rank; ++r, b += outputs, y = out) {
        const float h = narrow[r];
#pragma omp simd
        for (int64_t j = 0; j < outputs; ++j) out[j] = y[j] + h * wide(b[j]);
    }
}

template <class W>
void row(const Entry& entry, const float* x, const float* y, float* out, int64_t inputs, int64_t outputs) {
    float narrow[kMostRank];
    const W* a = reinterpret_cast<const W*>(entry.address);
    down(a, x, narrow, entry.rank, inputs);
    up(a + entry.rank * inputs, narrow, y, out, entry.rank, outputs);
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
