#!/usr/bin/env bash
# Measures on this machine and draws the four pictures of the README into docs/img: depth.svg, batch.svg, roofline.svg,
# and devices.svg (CPU against GPU; without a GPU two quantizations side by side). Some ten minutes on two cores, in a
# quiet moment: whatever else computes is in the pictures.
# usage: scripts/readme_plots.sh [REPETITIONS [SHAPE]]      5 of qwen3-0.6b; "1 micro" tries the script itself
#
# The model is synthetic: random weights of a real shape, which cost what real ones cost (llmrun/gguf/synth.py).
set -euo pipefail
here=$(readlink -f "${BASH_SOURCE[0]}")
cd "${here%/scripts/*}"
repetitions=${1:-5}
shape=${2:-qwen3-0.6b}
images=${IMAGES:-docs/img}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export LLMRUN_HOME=$work/home # these benches are not the user's history
llmrun=.venv/bin/llmrun

write_model() { # LEVEL
  .venv/bin/python -c 'import pathlib, sys; from llmrun.gguf import synth
synth.write(pathlib.Path(sys.argv[1]), synth.SHAPES[sys.argv[2]], sys.argv[3])' "$work/synthetic-$shape-$1.gguf" "$shape" "$1"
}

measure() { # LEVEL OPTION...
  local level=$1
  shift
  "$llmrun" bench "$work/synthetic-$shape-$level.gguf" -r "$repetitions" "$@" >&2
}

draw() { # NAME KIND BENCH...
  "$llmrun" plot "${@:3}" --kind "$2" -o "$images/$1.svg"
  local size
  size=$(wc -c <"$images/$1.svg")
  [ "$size" -lt 60000 ] || { echo "$images/$1.svg has $size bytes: too large for a README" >&2 && exit 1; }
}

last() { "$llmrun" bench history path last; }

mkdir -p "$images"
write_model Q4_K_M
measure Q4_K_M -p 128 -n 16 -d 0,256,512,1024,2048
draw depth sweep last
measure Q4_K_M -p 64 -n 16 -B 1,2,4,8
draw batch batch last
measure Q4_K_M -p 64,512 -n 32
draw roofline roofline last
if "$llmrun" devices --json | grep -Eq '"kind": "i?gpu"'; then
  measure Q4_K_M -p 512 -n 32 -ngl 0,all
  draw devices bars last
else
  write_model Q8_0
  four=$(last)
  measure Q8_0 -p 64,512 -n 32
  draw devices bars "$four" "$(last)"
fi
