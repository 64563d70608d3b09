// Rows of a table, by number. Grid, but for sums: (rows, any number of blocks for the columns).

// Row i of y = row rows[i] of x.
template <class T> __device__ void gather_rows(Mat x, const uint32_t *rows, Mat y) {
    map_columns<1, 1, T>(y.cols, {row_of<T>(x, rows[blockIdx.x])}, {row_of<T>(y, blockIdx.x)}, Same());
}

// Row rows[i] of y = row i of x.
template <class T> __device__ void scatter_rows(Mat y, const uint32_t *rows, Mat x) {
    map_columns<1, 1, T>(x.cols, {row_of<T>(x, blockIdx.x)}, {row_of<T>(y, rows[blockIdx.x])}, Same());
}

// Rows of x that go to the same row: numbers starts[i]..starts[i + 1] of `order` go to row targets[i].
// sum[target] += their sum, in order. Grid: (targets, any number of blocks for the columns).
template <class S, class T>
__device__ void add_rows(Mat sum, const uint32_t *targets, const uint32_t *starts, const uint32_t *order, Mat x) {
    S *to = row_of<S>(sum, targets[blockIdx.x]);
    FOR_COLUMNS(column, x.cols) {
        float own = 0;
        for (uint32_t i = starts[blockIdx.x]; i < starts[blockIdx.x + 1]; i++) own += to_float(row_of<T>(x, order[i])[column]);
        to[column] = from_float<S>(to_float(to[column]) + own);
    }
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
