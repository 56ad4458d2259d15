#!/usr/bin/env bash
# Measures the GPU backend beside its peers in one call, below ten minutes; see README.md here.
#
#   bench/gpu/run.sh --out docs/results                            # TVM and nvcc are here: compiles here
#   bench/gpu/run.sh --out docs/results --programs programs.tar.xz # compiled elsewhere by bench/gpu/build.py
#   bench/gpu/run.sh --dry --out /tmp/dry                          # tiny sizes on this CPU, no figures
#
# WHEELS=folder unpacks the wheels in it; PYTHON names the interpreter. Everything else goes to run.py --help.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
python=${PYTHON:-python3}

site=$(mktemp -d "${TMPDIR:-/tmp}/pared-site.XXXXXX")
trap 'rm -rf "$site"' EXIT

dry=()
for argument in "$@"; do
  if [ "$argument" = --dry ]; then dry=(--dry); fi
done

if [ -n "${WHEELS:-}" ]; then
  for wheel in "$WHEELS"/*.whl; do
    "$python" -m zipfile -e "$wheel" "$site"
  done
fi
export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}"

# An installed pared may be another one: this checkout is what is measured.
mkdir "$site/pared"
for file in "$root"/pared/*; do
  ln -s "$file" "$site/pared/"
done
for part in compiler passes backends targets bench; do
  ln -s "$root/$part" "$site/pared/$part"
done

"$python" "$here/need.py" "${dry[@]}"
# Not from the checkout: its folder `pared` would hide the one that has every part.
out_args=()
previous=
for argument in "$@"; do
  case $previous in
    --out | --programs) argument=$(realpath -m "$argument") ;;
  esac
  out_args+=("$argument")
  previous=$argument
done
cd "$site"
"$python" -m pared.bench.gpu.run "${out_args[@]}"
