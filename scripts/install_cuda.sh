#!/usr/bin/env bash
# Installs what a build with `--features cuda` needs, without a GPU and without root: CUDA 13.0's compiler, headers and
# libraries from NVIDIA's Python wheels (1.4 GB), put together as one CUDA_HOME. Prints the settings to build with.
#
#   eval "$(scripts/install_cuda.sh [FOLDER])"     FOLDER: default ~/.local/cuda-13.0
#   cargo build --release --features cuda
#
# Needs Python 3 with venv, and gcc. A second run changes nothing. A machine with CUDA 13.0 installed needs none of this:
# there, set CUDA_HOME. To run the program, see "On a GPU" in the README.
set -euo pipefail

folder=$(realpath -m "${1:-$HOME/.local/cuda-13.0}")
if [ ! -e "$folder/complete" ]; then
    python3 -m venv "$folder/venv" >&2
    # 13.0 because a driver of that generation (580) rejects what a newer compiler makes.
    "$folder/venv/bin/pip" install --quiet 'cuda-toolkit[nvcc,nvvm,crt,cccl,cudart,nvrtc,cublas,curand]==13.0.2' >&2
    wheels=$("$folder/venv/bin/python" -c 'import nvidia.cu13 as m; print(list(m.__path__)[0])')
    mkdir -p "$folder/lib64/stubs"
    ln -sfn "$wheels"/bin "$wheels"/nvvm "$wheels"/include "$folder/"
    # The linker looks for libX.so; wheels have libX.so.13. nvcc looks for lib64 beside its own folder.
    ln -sfn "$wheels"/lib/* "$folder/lib64/"
    ln -sfn lib "$wheels/lib64"
    for library in "$folder"/lib64/*.so.*; do
        name=${library##*/}
        ln -sfn "$name" "$folder/lib64/${name%%.so.*}.so"
    done
    # The driver's library comes with the driver. To link, one with the same names will do; each says that it is none.
    grep -oE '\bcu[A-Z][A-Za-z0-9_]*' "$folder/include/cuda.h" | sort -u |
        sed 's/.*/int &(void) { return 34; }/' |
        gcc -x c - -shared -fPIC -Wl,-soname,libcuda.so.1 -o "$folder/lib64/stubs/libcuda.so"
    ln -sfn libcuda.so "$folder/lib64/stubs/libcuda.so.1"
    touch "$folder/complete"
fi
"$folder/bin/nvcc" --version >&2
cat <<END
export CUDA_HOME='$folder'
export PATH='$folder/bin':\$PATH
export CUDA_COMPUTE_CAP=\${CUDA_COMPUTE_CAP:-80}
export NVCC_APPEND_FLAGS=--compress-mode=size
END
