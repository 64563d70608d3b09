// Root-mean-square normalisation of rows, or of each head of a row. A block takes vectors of `weight.cols` values.

__device__ inline float inverse_rms(float squares, uint32_t size, float eps) {
    return rsqrtf(squares / size + eps);
}

// y = x / rms(x) weight. Grid: a block for each vector.
template <class T> __device__ void rms_norm(Mat x, Mat weight, Mat y, float eps) {
    uint32_t size = weight.cols, per_row = x.cols / size;
    const T *from = row_of<T>(x, blockIdx.x / per_row) + blockIdx.x % per_row * size, *w = row_of<T>(weight, 0);
    T *to = row_of<T>(y, blockIdx.x / per_row) + blockIdx.x % per_row * size;
    float squares = 0;
    for (uint32_t i = threadIdx.x; i < size; i += blockDim.x) squares += to_float(from[i]) * to_float(from[i]);
    float r = inverse_rms(block_reduce<Sum>(squares), size, eps);
    for (uint32_t i = threadIdx.x; i < size; i += blockDim.x) to[i] = from_float<T>(to_float(from[i]) * r * to_float(w[i]));
}

// dx += the gradient by x; row b of partial [blocks, size] = the part of the weight's gradient that comes from the
// vectors of block b, unless it is null.
template <class T> __device__ void rms_norm_backward(Mat g, Mat x, Mat weight, Mat dx, float *partial, float eps) {
    uint32_t size = weight.cols, per_row = x.cols / size, vectors = x.rows * per_row;
    const T *w = row_of<T>(weight, 0);
    DYNAMIC_SHARED(memory);
    float *dw = (float *)memory;
    // Each thread meets the same elements in every vector.
    for (uint32_t i = threadIdx.x; partial && i < size; i += blockDim.x) dw[i] = 0;
    uint32_t share = (vectors + gridDim.x - 1) / gridDim.x, first = blockIdx.x * share;
    for (uint32_t vector = first; vector < first + share && vector < vectors; vector++) {
        size_t row = vector / per_row, column = vector % per_row * size;
        const T *px = row_of<T>(x, row) + column, *pg = row_of<T>(g, row) + column;
        T *to = row_of<T>(dx, row) + column;
        float squares = 0, inner = 0;
        for (uint32_t i = threadIdx.x; i < size; i += blockDim.x) {
            float value = to_float(px[i]);
            squares += value * value;
            inner += to_float(pg[i]) * to_float(w[i]) * value;
        }
        float r = inverse_rms(block_reduce<Sum>(squares), size, eps);
        float shrink = block_reduce<Sum>(inner) * r * r * r / size;
        for (uint32_t i = threadIdx.x; i < size; i += blockDim.x) {
            float value = to_float(px[i]), up = to_float(pg[i]);
            to[i] = from_float<T>(to_float(to[i]) + up * to_float(w[i]) * r - value * shrink);
            if (partial) dw[i] += up * r * value;
        }
    }
    for (uint32_t i = threadIdx.x; partial && i < size; i += blockDim.x) partial[(size_t)blockIdx.x * size + i] = dw[i];
}

KERNELS(rms_norm, (Mat x, Mat weight, Mat y, float eps), (x, weight, y, eps))
KERNELS(rms_norm_backward, (Mat g, Mat x, Mat weight, Mat dx, float *partial, float eps),
        (g, x, weight, dx, partial, eps))
