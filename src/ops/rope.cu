// Rotary position embedding in the half-split layout, in place; `sign` -1 turns back. A thread for each pair of values.
template <class T> __device__ void rope(Mat x, const uint32_t *positions, const float *inv_freq, uint32_t half, float sign) {
    size_t pairs = x.cols / 2;
    for (size_t item = thread_of_grid(); item < x.rows * pairs; item += threads_of_grid()) {
        size_t row = item / pairs, pair = item % pairs, head = pair / half, i = pair % half;
        T *a = row_of<T>(x, row) + head * 2 * half + i, *b = a + half;
        float sin, cos;
        sincosf(positions[row] * inv_freq[i], &sin, &cos);
        float left = to_float(*a), right = to_float(*b);
        *a = from_float<T>(left * cos - right * (sin * sign));
        *b = from_float<T>(right * cos + left * (sin * sign));
    }
}

KERNELS(rope, (Mat x, const uint32_t *positions, const float *inv_freq, uint32_t half, float sign),
        (x, positions, inv_freq, half, sign))
