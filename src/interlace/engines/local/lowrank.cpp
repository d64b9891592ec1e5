// The operation LowRank: what adapters add to the linear layers of one input, each row with its own adapter, read where
// it lies; and how adapters are laid down for it. `kernel.py` has it compiled where somebody asks for it; `fused.py` says
// what the inputs mean.

#include <algorithm>
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

// As many floats at once as the processor takes: of wider vectors, compilers keep parts in memory, six times slower.
#if defined(__AVX512F__)
constexpr int64_t kLanes = 16;
#elif defined(__AVX__)
constexpr int64_t kLanes = 8;
#else
constexpr int64_t kLanes = 4;
#endif
constexpr int64_t kStep = 2 * kLanes;
typedef float Floats __attribute__((vector_size(4 * kLanes)));
typedef uint32_t Words __attribute__((vector_size(4 * kLanes)));
typedef uint16_t Halves __attribute__((vector_size(2 * kLanes)));

// Bytes ahead of what is read. What a row reads lies in one piece, but too short a one for the processor to see what
// comes next; so it is told, and at the end of a piece, of the piece that is read after it.
constexpr int64_t kAhead = 4096;

// Have `kStep` numbers fetched from there, each line of the cache once.
template <class W>
void fetch(const char* from) {
    for (int64_t k = 0; k < kStep; k += 64 / sizeof(W)) __builtin_prefetch(from + k * sizeof(W));
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

void put(float* at, Floats values) { std::memcpy(at, &values, sizeof(values)); }

void put(uint16_t* at, Floats values) {  // to the nearest, ties to even; what is no number stays none
    const Words bits = (Words)values;
    const Words rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
    const Halves halves = __builtin_convertvector(values == values ? rounded : (bits >> 16) | 0x40, Halves);
    std::memcpy(at, &halves, sizeof(halves));
}

template <class T>
void put_one(T* at, float value) {
    Floats values = {};
    values[0] = value;
    T all[kLanes];
    put(all, values);
    *at = all[0];
}

float total(Floats values) {
    float sum = 0;
    for (int64_t lane = 0; lane < kLanes; ++lane) sum += values[lane];
    return sum;
}

// A row of A times x. Two sums: one alone would wait for itself.
template <class W, class T>
float dot(const W* a, const T* x, int64_t inputs, const char* ahead) {
    Floats s0 = {}, s1 = {};
    int64_t i = 0;
    for (; i + kStep <= inputs; i += kStep) {
        fetch<W>(ahead + i * sizeof(W));
        s0 += wide(a + i) * wide(x + i);
        s1 += wide(a + i + kLanes) * wide(x + i + kLanes);
    }
    float sum = total(s0 + s1);
    for (; i < inputs; ++i) sum += one(a + i) * one(x + i);
    return sum;
}

// out = y + h b
template <class W, class Y, class Out>
void add(const W* b, float h, const Y* y, Out* out, int64_t outputs, const char* ahead) {
    int64_t j = 0;
    for (; j + kStep <= outputs; j += kStep) {
        fetch<W>(ahead + j * sizeof(W));
        put(out + j, wide(y + j) + h * wide(b + j));
        put(out + j + kLanes, wide(y + j + kLanes) + h * wide(b + j + kLanes));
    }
    for (; j < outputs; ++j) put_one(out + j, one(y + j) + h * one(b + j));
}

// out = y + B A x. What is between lies in `sums`, in float: it is rounded once, at the end. `next` is read after it.
template <class W, class T>
void row(const Entry& entry, const T* x, const T* y, T* out, float* sums, int64_t inputs, int64_t outputs,
         const char* next) {
    float narrow[kMostRank];
    const W* at = reinterpret_cast<const W*>(entry.address);
    const char* end = reinterpret_cast<const char*>(at + entry.rank * (inputs + outputs));
    const auto ahead = [&](const W* from) {
        const char* wanted = reinterpret_cast<const char*>(from) + kAhead;
        return wanted < end ? wanted : next + (wanted - end);
    };
    for (int64_t r = 0; r < entry.rank; ++r, at += inputs) narrow[r] = dot(at, x, inputs, ahead(at));
    const int64_t last = entry.rank - 1;
    if (!last) return add(at, narrow[0], y, out, outputs, ahead(at));
    add(at, narrow[0], y, sums, outputs, ahead(at));
    for (int64_t r = 1; r < last; ++r) {
        at += outputs;
        add(at, narrow[r], sums, sums, outputs, ahead(at));
    }
    at += outputs;
    add(at, narrow[last], sums, out, outputs, ahead(at));
}

class LowRank : public ov::op::Op {
public:
    OPENVINO_OP("LowRank", "interlace");
    LowRank() = default;
    LowRank(const ov::OutputVector& arguments, std::vector<int64_t> layers)
        : Op(arguments), layers_(std::move(layers)) {
        constructor_validate_and_infer_types();
    }

    void validate_and_infer_types() override {
        for (size_t k = kFirst; k < get_input_size(); ++k)
            set_output_type(k - kFirst, get_input_element_type(k), get_input_partial_shape(k));
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
        if (inputs[0].get_element_type() == ov::element::bf16)
            run<uint16_t>(outputs, inputs);
        else
            run<float>(outputs, inputs);
        return true;
    }

private:
    template <class T>
    void run(ov::TensorVector& outputs, const ov::TensorVector& inputs) const {
        const int64_t rows = inputs[0].get_shape()[0], width = inputs[0].get_shape()[1];
        const int64_t table_width = inputs[2].get_shape()[1] * sizeof(int32_t) / sizeof(Entry);
        const T* x = static_cast<const T*>(inputs[0].data());
        const int32_t* adapter = inputs[1].data<int32_t>();
        const Entry* table = reinterpret_cast<const Entry*>(inputs[2].data<int32_t>());
        struct Layer {
            int64_t column, outputs;
            const T* y;
            T* out;
        };
        std::vector<Layer> layers;
        int64_t widest = 0;
        for (size_t k = 0; k + kFirst < inputs.size(); ++k) {
            const auto& y = inputs[k + kFirst];
            const int64_t wide = y.get_shape()[1];
            layers.push_back({layers_[k], wide, static_cast<const T*>(y.data()), static_cast<T*>(outputs[k].data())});
            widest = std::max(widest, wide);
        }
        const auto some = [&](const tbb::blocked_range<int64_t>& range) {
            std::vector<float> sums(widest);
            const auto entry_of = [&](const Layer& layer, int64_t t) {
                const Entry* entry = adapter[t] < 0 ? nullptr : table + adapter[t] * table_width + layer.column;
                OPENVINO_ASSERT(!entry || entry->rank <= kMostRank, "LowRank: the rank of an adapter is too large");
                return entry && entry->rank ? entry : nullptr;
            };
            const auto after = [&](const Layer& layer, int64_t t) {
                const bool more = t + 1 < range.end(), other = !more && &layer != &layers.back();
                const Entry* entry = more ? entry_of(layer, t + 1) : other ? entry_of(*(&layer + 1), range.begin()) : nullptr;
                return reinterpret_cast<const char*>(entry ? entry->address : 0);  // nowhere: asking for that does nothing
            };
            for (const auto& layer : layers)
                for (int64_t t = range.begin(); t < range.end(); ++t) {
                    const T *from = x + t * width, *y = layer.y + t * layer.outputs;
                    T* out = layer.out + t * layer.outputs;
                    const Entry* entry = entry_of(layer, t);
                    if (!entry)
                        std::memcpy(out, y, layer.outputs * sizeof(T));
                    else if (entry->bytes == 2)
                        row<uint16_t>(*entry, from, y, out, sums.data(), width, layer.outputs, after(layer, t));
                    else
                        row<float>(*entry, from, y, out, sums.data(), width, layer.outputs, after(layer, t));
                }
        };
        tbb::parallel_for(tbb::blocked_range<int64_t>(0, rows), some, tbb::static_partitioner());
    }

    std::vector<int64_t> layers_;  // columns of the table, one for each layer
};

}  // namespace

// --- laying adapters down: called by `fused.py` without Python's lock ---

namespace {

// A layer as it was read, float32: A [rank, inputs] and B [outputs, rank]; and where it is to lie, in numbers of `bytes`.
struct Piece {
    int64_t down, up, rank, inputs, outputs, bytes, to;
};

uint32_t bits_of(const float* at) {
    uint32_t bits;
    std::memcpy(&bits, at, sizeof(bits));
    return bits;
}

void narrow(const float* from, float* to) { *to = *from; }

void narrow(const float* from, uint16_t* to) {  // to the nearest, ties to even
    const uint32_t bits = bits_of(from);
    *to = uint16_t((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
}

template <class W>
void lay_down(const Piece& piece) {
    const float *down = reinterpret_cast<const float*>(piece.down), *up = reinterpret_cast<const float*>(piece.up);
    W* to = reinterpret_cast<W*>(piece.to);
    for (int64_t i = 0; i < piece.rank * piece.inputs; ++i) narrow(down + i, to + i);
    to += piece.rank * piece.inputs;
    for (int64_t r = 0; r < piece.rank; ++r, to += piece.outputs)
        for (int64_t j = 0; j < piece.outputs; ++j) narrow(up + j * piece.rank + r, to + j);
}

bool is_bf16(int64_t address, int64_t count) {
    const float* values = reinterpret_cast<const float*>(address);
    uint32_t low = 0;
    for (int64_t i = 0; i < count; ++i) low |= bits_of(values + i) & 0xFFFF;
    return !low;
}

}  // namespace

// Set `bytes` of each piece: 2 where all its numbers are bfloat16 numbers, else 4.
extern "C" void interlace_measure(Piece* pieces, int64_t count) {
    for (Piece* piece = pieces; piece < pieces + count; ++piece) {
        const bool exact = is_bf16(piece->down, piece->rank * piece->inputs) &&
                           is_bf16(piece->up, piece->rank * piece->outputs);
        piece->bytes = exact ? 2 : 4;
    }
}

// Write each piece to where it is to lie: A and, behind it, B transposed.
extern "C" void interlace_lay_down(const Piece* pieces, int64_t count) {
    for (const Piece* piece = pieces; piece < pieces + count; ++piece)
        piece->bytes == 2 ? lay_down<uint16_t>(*piece) : lay_down<float>(*piece);
}

OPENVINO_CREATE_EXTENSIONS(std::vector<ov::Extension::Ptr>({std::make_shared<ov::OpExtension<LowRank>>()}));
