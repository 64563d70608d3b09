// Rotary position embedding in the half-split layout, in place; `sign` -1 turns back. A thread for each pair of values.
// Grid: (rows, any number of blocks for the pairs).
template <class T> __device__ void rope(Mat x, const uint32_t *positions, const float *inv_freq, uint32_t half, float sign) {
    T *row = row_of<T>(x, blockIdx.x);
    float position = positions[blockIdx.x];
    FOR_COLUMNS(pair, x.cols / 2) {
        uint32_t i = (uint32_t)pair % half;
        T *a = row + (uint32_t)pair / half * 2 * half + i, *b = a + half;
        float sin, cos, left = to_float(*a), right = to_float(*b);
        sincosf(position * inv_freq[i], &sin, &cos);
        *a = from_float<T>(left * cos - right * (sin * sign));
        *b = from_float<T>(right * cos + left * (sin * sign));
    }
}

KERNELS(rope, (Mat x, const uint32_t *positions, const float *inv_freq, uint32_t half, float sign),
        (x, positions, inv_freq, half, sign))
