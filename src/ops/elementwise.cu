// The gated unit of the feed-forward block, and sums.

// y = silu(gate) up, from the halves of gate_up.
template <class T> __device__ void silu_mul(Mat gate_up, Mat y) {
    for (size_t i = thread_of_grid(); i < (size_t)y.rows * y.cols; i += threads_of_grid()) {
        const T *row = row_of<T>(gate_up, i / y.cols) + i % y.cols;
        float gate = to_float(row[0]), up = to_float(row[y.cols]);
        row_of<T>(y, i / y.cols)[i % y.cols] = from_float<T>(gate / (1.0f + expf(-gate)) * up);
    }
}

// d_gate_up = the gradient of silu_mul, given that of its result.
template <class T> __device__ void silu_mul_backward(Mat g, Mat gate_up, Mat d_gate_up) {
    for (size_t i = thread_of_grid(); i < (size_t)g.rows * g.cols; i += threads_of_grid()) {
        size_t row = i / g.cols, column = i % g.cols;
        const T *from = row_of<T>(gate_up, row) + column;
        T *to = row_of<T>(d_gate_up, row) + column;
        float gate = to_float(from[0]), up = to_float(from[g.cols]), upstream = to_float(row_of<T>(g, row)[column]);
        float s = 1.0f / (1.0f + expf(-gate));
        to[0] = from_float<T>(upstream * up * s * (1.0f + gate * (1.0f - s)));
        to[g.cols] = from_float<T>(upstream * gate * s);
    }
}

// y += x
template <class T> __device__ void add_into(Mat y, Mat x) {
    for (size_t i = thread_of_grid(); i < (size_t)y.rows * y.cols; i += threads_of_grid()) {
        T *to = row_of<T>(y, i / y.cols) + i % y.cols;
        *to = from_float<T>(to_float(*to) + to_float(row_of<T>(x, i / y.cols)[i % y.cols]));
    }
}

// y = x
template <class T> __device__ void copy_rows(Mat y, Mat x) {
    for (size_t i = thread_of_grid(); i < (size_t)y.rows * y.cols; i += threads_of_grid()) {
        row_of<T>(y, i / y.cols)[i % y.cols] = row_of<T>(x, i / y.cols)[i % y.cols];
    }
}

// y += bias in every row
template <class T> __device__ void add_to_rows(Mat y, Mat bias) {
    for (size_t i = thread_of_grid(); i < (size_t)y.rows * y.cols; i += threads_of_grid()) {
        T *to = row_of<T>(y, i / y.cols) + i % y.cols;
        *to = from_float<T>(to_float(*to) + to_float(row_of<T>(bias, 0)[i % y.cols]));
    }
}

// sum [cols] += the sum of each column of x. Block: 8 rows of 32 threads, a column for each of the 32.
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
KERNELS(add_to_rows, (Mat y, Mat bias), (y, bias))
KERNELS(add_column_sums, (Mat x, float *sum), (x, sum))
