# shellcheck shell=bash
# What scripts/llmrun, scripts/setup and scripts/test share. `root` is the checkout; nothing here starts a process.

# The flags of the last set-up count until others are given ("" is none): a later command without them must not undo it.
if [ -z "${LLMRUN_CMAKE_ARGS+given}" ] && [ -r "$root/.venv/cmake-args" ]; then
  LLMRUN_CMAKE_ARGS=$(<"$root/.venv/cmake-args")
fi

# What the set-up depends on, as one text: kept in .venv/ready when the set-up is done, compared at every start.
fingerprint() {
  local cpu=${HOSTTYPE:-unknown} key value
  if [ -r /proc/cpuinfo ]; then
    while IFS=: read -r key value; do
      case $key in flags* | Features*) cpu+=$value && break ;; esac
    done </proc/cpuinfo
  fi
  printf '%s\n' "$root" "${LLMRUN_CMAKE_ARGS:-}" "$cpu"
}

is_ready() { # FILE: true when the set-up that wrote FILE still stands
  local stamp=$1 input
  [ -f "$stamp" ] && [ -x "$root/.venv/bin/python" ] && [ -x "$root/.venv/bin/llmrun" ] || return 1
  for input in pyproject.toml scripts/constraints.txt scripts/setup scripts/setup.sh scripts/llama_cpp.cmake; do
    if [ "$root/$input" -nt "$stamp" ]; then return 1; fi
  done
  local now then
  now=$(fingerprint)
  then=$(<"$stamp")
  [ "$now" = "$then" ]
}
