// From rows of f32 logits to log-probs, entropies and gradients. A block for each row.

struct RowStats {
    float lse, entropy;
};

// logsumexp and entropy of z / temperature, in nats; every thread gets them.
__device__ inline RowStats row_stats(const float *z, uint32_t size, float temperature) {
    float most = -INFINITY;
    for (uint32_t i = threadIdx.x; i < size; i += blockDim.x) most = fmaxf(most, z[i] / temperature);
    most = block_reduce<Max>(most);
    float sum = 0, weighted = 0;
    for (uint32_t i = threadIdx.x; i < size; i += blockDim.x) {
        float shifted = z[i] / temperature - most, p = expf(shifted);
        sum += p;
        // A token that cannot be drawn has a logit of -infinity; its share of the entropy is 0.
        if (p > 0.0f) weighted += p * shifted;
    }
    // A NaN is greater than nothing: it shows in the sums.
    sum = block_reduce<Sum>(sum);
    weighted = block_reduce<Sum>(weighted);
    float log_sum = logf(sum);
    return {most + log_sum, log_sum - weighted / sum};
}

// What the predictions of the block's row are: both sampler and trainer go through here.
KERNEL(token_logprobs, (Mat z, const uint32_t *targets, float temperature, float *logprobs, float *entropies)) {
    const float *row = row_of<float>(z, blockIdx.x);
    RowStats stats = row_stats(row, z.cols, temperature);
    if (threadIdx.x > 0) return;
    logprobs[blockIdx.x] = row[targets[blockIdx.x]] / temperature - stats.lse;
    entropies[blockIdx.x] = stats.entropy;
}

// The same, and dz = the gradient by the undivided logits, given those by log-prob and entropy (null: none):
// dl_y/dz_j = 1[j = y] - p_j; dH/dz_j = -p_j (log p_j + H).
template <class T>
__device__ void logits_gradient(Mat z, const uint32_t *targets, float temperature, const float *grad_l, const float *grad_h,
                                Mat dz, float *logprobs, float *entropies) {
    const float *row = row_of<float>(z, blockIdx.x);
    T *to = row_of<T>(dz, blockIdx.x);
    RowStats stats = row_stats(row, z.cols, temperature);
    uint32_t target = targets[blockIdx.x];
    float of_logprob = grad_l[blockIdx.x], of_entropy = grad_h ? grad_h[blockIdx.x] : 0.0f;
    for (uint32_t i = threadIdx.x; i < z.cols; i += blockDim.x) {
        float log_p = row[i] / temperature - stats.lse, p = expf(log_p), gradient = 0;
        if (!(p <= 0.0f)) gradient = -p * (of_logprob + of_entropy * (log_p + stats.entropy));
        if (i == target) gradient += of_logprob;
        to[i] = from_float<T>(gradient / temperature);
    }
    if (threadIdx.x > 0) return;
    logprobs[blockIdx.x] = row[target] / temperature - stats.lse;
    entropies[blockIdx.x] = stats.entropy;
}

KERNELS(logits_gradient,
        (Mat z, const uint32_t *targets, float temperature, const float *grad_l, const float *grad_h, Mat dz,
         float *logprobs, float *entropies),
        (z, targets, temperature, grad_l, grad_h, dz, logprobs, entropies))
