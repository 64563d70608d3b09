// AdamW in one pass (Loshchilov and Hutter, arXiv:1711.05101, algorithm 2) and the sum of squares of gradients.

// The factors of a step, as the Rust side lays them out.
struct StepFactors {
    float grad_scale, decay, weight1, beta2, weight2, root_factor2, eps, step_size;
};

// Updates the f32 master weights and, where they are kept apart, their rounded values (null: they are not).
KERNEL(adamw, (float *master, bf16 *value, float *m, float *v, const float *grad, uint64_t count, StepFactors f)) {
    for (size_t i = thread_of_grid(); i < count; i += threads_of_grid()) {
        float g = grad[i] * f.grad_scale;
        float first = m[i] + f.weight1 * (g - m[i]), second = v[i] * f.beta2 + f.weight2 * g * g;
        float theta = master[i] * f.decay - f.step_size * (first / (sqrtf(second) * f.root_factor2 + f.eps));
        m[i] = first;
        v[i] = second;
        master[i] = theta;
        if (value) value[i] = __float2bfloat16(theta);
    }
}

// sums[block] = the sum of squares of the block's share of x.
KERNEL(sum_of_squares, (const float *x, uint64_t count, double *sums)) {
    double sum = 0;
    for (size_t i = thread_of_grid(); i < count; i += threads_of_grid()) sum += (double)x[i] * x[i];
    sum = block_reduce<Sum>(sum);
    if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}
