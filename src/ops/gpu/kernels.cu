// Every kernel, as one module.
#include "common.cuh"

#include "../attention/attention.cu"
#include "../elementwise.cu"
#include "../embedding.cu"
#include "../head.cu"
#include "../quantized.cu"
#include "../rms_norm.cu"
#include "../rope.cu"
#include "../../optim/adamw.cu"
#include "../../rollout/sampler.cu"
