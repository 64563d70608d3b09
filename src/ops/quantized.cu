// Weights in few bits: GGML's blocks of 32 values with one scale, as `quantized.rs` makes them.

const int BLOCK_VALUES = 32;

struct BlockQ8_0 {
    __half scale;
    int8_t values[BLOCK_VALUES];
    __device__ float value(int i) const { return values[i] * __half2float(scale); }
};

// Value i is the low half of byte i, value i + 16 its high half.
struct BlockQ4_0 {
    __half scale;
    uint8_t pairs[BLOCK_VALUES / 2];
    __device__ float value(int i) const {
        int bits = i < BLOCK_VALUES / 2 ? pairs[i] & 15 : pairs[i - BLOCK_VALUES / 2] >> 4;
        return (bits - 8) * __half2float(scale);
    }
};

// y = the values of all blocks, in order; its rows lie one after the other. A thread takes 16 bytes of y at a time.
template <class T, class Block> __device__ void dequantize(Mat y, const Block *blocks) {
    const int N = 16 / sizeof(T);
    size_t count = (size_t)y.rows * y.cols / N;
    for (size_t some = thread_of_grid(); some < count; some += threads_of_grid()) {
        const Block &block = blocks[some * N / BLOCK_VALUES];
        Values<T, N> made;
#pragma unroll
        for (int n = 0; n < N; n++) made.of[n] = from_float<T>(block.value(some * N % BLOCK_VALUES + n));
        ((Values<T, N> *)y.data)[some] = made;
    }
}

template <class T> __device__ void dequantize_q8_0(Mat y, const BlockQ8_0 *blocks) { dequantize<T>(y, blocks); }
template <class T> __device__ void dequantize_q4_0(Mat y, const BlockQ4_0 *blocks) { dequantize<T>(y, blocks); }

KERNELS(dequantize_q8_0, (Mat y, const BlockQ8_0 *blocks), (y, blocks))
KERNELS(dequantize_q4_0, (Mat y, const BlockQ4_0 *blocks), (y, blocks))
