#!/usr/bin/env bash
# Conducts all experiments on this machine and writes docs/experiments: records, pictures, pages, the front page. Less than
# 90 minutes on two cores, in a quiet moment; one that was ended goes on where it was.
# usage: scripts/run_experiments.sh [GGUF] [OPTIONS OF llmrun experiment]
#   GGUF: a real model whose levels are judged by what they lose, beside `tiny`
set -euo pipefail
here=$(readlink -f "${BASH_SOURCE[0]}")
cd "${here%/scripts/*}"
model=()
if [ $# -gt 0 ] && [ "${1#-}" = "$1" ]; then
  model=(--model "$1")
  shift
fi
exec ./scripts/llmrun experiment all -o docs/experiments ${model[@]+"${model[@]}"} "$@"
