// The gated unit of the feed-forward block, sums, and dropout. Grid: (rows, any number of blocks for the columns).

// y = silu(gate) up, from the halves of gate_up.
template <class T> __device__ void silu_mul(Mat gate_up, Mat y) {
    const T *from = row_of<T>(gate_up, blockIdx.x);
    map_columns<2, 1, T>(y.cols, {from, from + y.cols}, {row_of<T>(y, blockIdx.x)}, [](const float *x, float *y) {
        float gate = x[0], up = x[1];
        y[0] = gate / (1.0f + expf(-gate)) * up;
    });
}

// d_gate_up = the gradient of silu_mul, given that of its result.
template <class T> __device__ void silu_mul_backward(Mat g, Mat gate_up, Mat d_gate_up) {
    const T *from = row_of<T>(gate_up, blockIdx.x), *upstream = row_of<T>(g, blockIdx.x);
    T *to = row_of<T>(d_gate_up, blockIdx.x);
    map_columns<3, 2, T>(g.cols, {from, from + g.cols, upstream}, {to, to + g.cols}, [](const float *x, float *y) {
        float gate = x[0], up = x[1], by = x[2], s = 1.0f / (1.0f + expf(-gate));
        y[0] = by * up * s * (1.0f + gate * (1.0f - s));
        y[1] = by * gate * s;
    });
}

// y += x
template <class T> __device__ void add_into(Mat y, Mat x) {
    T *to = row_of<T>(y, blockIdx.x);
    map_columns<2, 1, T>(y.cols, {to, row_of<T>(x, blockIdx.x)}, {to}, [](const float *x, float *y) { y[0] = x[0] + x[1]; });
}

// y += scale x
template <class T> __device__ void add_scaled(Mat y, Mat x, float scale) {
    T *to = row_of<T>(y, blockIdx.x);
    map_columns<2, 1, T>(y.cols, {to, row_of<T>(x, blockIdx.x)}, {to},
                         [=](const float *x, float *y) { y[0] = x[0] + scale * x[1]; });
}

// One block of Philox4x32-10: the same bits as `rng::philox`.
__device__ inline void philox(uint32_t counter[4], uint32_t key0, uint32_t key1) {
    for (int round = 0; round < 10; round++) {
        uint64_t low = (uint64_t)0xD2511F53u * counter[0], high = (uint64_t)0xCD9E8D57u * counter[2];
        counter[0] = (uint32_t)(high >> 32) ^ counter[1] ^ key0;
        counter[1] = (uint32_t)high;
        counter[2] = (uint32_t)(low >> 32) ^ counter[3] ^ key1;
        counter[3] = (uint32_t)low;
        key0 += 0x9E3779B9u;
        key1 += 0xBB67AE85u;
    }
}

// y = x with values left out at random: those whose draw is below the threshold. A thread draws for four columns.
template <class T>
__device__ void dropout(Mat x, Mat y, uint32_t key0, uint32_t key1, uint32_t threshold, float scale) {
    const T *from = row_of<T>(x, blockIdx.x);
    T *to = row_of<T>(y, blockIdx.x);
    FOR_COLUMNS(block, (x.cols + 3) / 4) {
        uint32_t draws[4] = {blockIdx.x, (uint32_t)block, 0, 0};
        philox(draws, key0, key1);
        for (uint32_t i = 0; i < 4 && 4 * block + i < x.cols; i++) {
            size_t column = 4 * block + i;
            to[column] = from_float<T>(draws[i] < threshold ? 0.0f : to_float(from[column]) * scale);
        }
    }
}

// y = x
template <class T> __device__ void copy_rows(Mat y, Mat x) {
    map_columns<1, 1, T>(y.cols, {row_of<T>(x, blockIdx.x)}, {row_of<T>(y, blockIdx.x)}, Same());
}

// y += bias in every row
template <class T> __device__ void add_to_rows(Mat y, Mat bias) {
    T *to = row_of<T>(y, blockIdx.x);
    map_columns<2, 1, T>(y.cols, {to, row_of<T>(bias, 0)}, {to}, [](const float *x, float *y) { y[0] = x[0] + x[1]; });
}

// sum [cols] += the sum of each column of x. Block: 8 lines of 32 threads, a column for each of the 32.
// Grid: (cols / 32, rounded up).
template <class T> __device__ void add_column_sums(Mat x, float *sum) {
    const int LINES = 8;
    __shared__ float parts[LINES][WARP];
    uint32_t line = threadIdx.x / WARP, column = blockIdx.x * WARP + threadIdx.x % WARP;
    float own = 0;
    for (uint32_t row = line; column < x.cols && row < x.rows; row += LINES) own += to_float(row_of<T>(x, row)[column]);
    parts[line][threadIdx.x % WARP] = own;
    __syncthreads();
    if (line > 0 || column >= x.cols) return;
    for (int other = 1; other < LINES; other++) own += parts[other][threadIdx.x];
    sum[column] += own;
}

KERNELS(silu_mul, (Mat gate_up, Mat y), (gate_up, y))
KERNELS(silu_mul_backward, (Mat g, Mat gate_up, Mat d_gate_up), (g, gate_up, d_gate_up))
KERNELS(copy_rows, (Mat y, Mat x), (y, x))
KERNELS(add_into, (Mat y, Mat x), (y, x))
KERNELS(add_scaled, (Mat y, Mat x, float scale), (y, x, scale))
KERNELS(dropout, (Mat x, Mat y, uint32_t key0, uint32_t key1, uint32_t threshold, float scale),
        (x, y, key0, key1, threshold, scale))
KERNELS(add_to_rows, (Mat y, Mat bias), (y, bias))
KERNELS(add_column_sums, (Mat x, float *sum), (x, sum))
