// Rows of a table, by number.

// Row i of y = row rows[i] of x.
template <class T> __device__ void gather_rows(Mat x, const uint32_t *rows, Mat y) {
    for (size_t i = thread_of_grid(); i < (size_t)y.rows * y.cols; i += threads_of_grid()) {
        row_of<T>(y, i / y.cols)[i % y.cols] = row_of<T>(x, rows[i / y.cols])[i % y.cols];
    }
}

// Row rows[i] of y = row i of x.
template <class T> __device__ void scatter_rows(Mat y, const uint32_t *rows, Mat x) {
    for (size_t i = thread_of_grid(); i < (size_t)x.rows * x.cols; i += threads_of_grid()) {
        row_of<T>(y, rows[i / x.cols])[i % x.cols] = row_of<T>(x, i / x.cols)[i % x.cols];
    }
}

// Rows of x that go to the same row: numbers starts[i]..starts[i + 1] of `order` go to row targets[i].
// sum[target] += their sum, in order. Grid: (targets, columns / threads of a block, rounded up).
template <class S, class T>
__device__ void add_rows(Mat sum, const uint32_t *targets, const uint32_t *starts, const uint32_t *order, Mat x) {
    uint32_t column = blockIdx.y * blockDim.x + threadIdx.x;
    if (column >= x.cols) return;
    float own = 0;
    for (uint32_t i = starts[blockIdx.x]; i < starts[blockIdx.x + 1]; i++) own += to_float(row_of<T>(x, order[i])[column]);
    S *to = row_of<S>(sum, targets[blockIdx.x]) + column;
    *to = from_float<S>(to_float(*to) + own);
}

// Into a gradient of a weight, which is f32.
template <class T>
__device__ void scatter_add_gradient(Mat sum, const uint32_t *targets, const uint32_t *starts, const uint32_t *order, Mat x) {
    add_rows<float, T>(sum, targets, starts, order, x);
}

template <class T>
__device__ void scatter_add_rows(Mat sum, const uint32_t *targets, const uint32_t *starts, const uint32_t *order, Mat x) {
    add_rows<T, T>(sum, targets, starts, order, x);
}

KERNELS(gather_rows, (Mat x, const uint32_t *rows, Mat y), (x, rows, y))
KERNELS(scatter_rows, (Mat y, const uint32_t *rows, Mat x), (y, rows, x))
KERNELS(scatter_add_gradient,
        (Mat sum, const uint32_t *targets, const uint32_t *starts, const uint32_t *order, Mat x),
        (sum, targets, starts, order, x))
KERNELS(scatter_add_rows, (Mat sum, const uint32_t *targets, const uint32_t *starts, const uint32_t *order, Mat x),
        (sum, targets, starts, order, x))
