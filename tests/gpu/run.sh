#!/bin/sh
# All checks on one GPU in at most eight minutes: the tests, the speed, and, where the package's other dependencies are installed, a part
# of the MNIST experiment. Needs torch, numpy and pytest. Writes gpu.md, tests.txt and, if the experiment ran, the trained models (truth/)
# to the folder that is given.
#
#     sh tests/gpu/run.sh FOLDER
set -u
out=${1:?usage: run.sh FOLDER}
cd "$(dirname "$0")/../.." || exit 1
mkdir -p "$out"
python=${PYTHON:-python3}
device=${GENREP_TEST_DEVICE:-cuda}
failed=0
timeout 200 "$python" -m pytest -q -c tests/gpu/pytest.ini --confcutdir tests/gpu tests/gpu >"$out/tests.txt" 2>&1 || failed=1
tail -n 3 "$out/tests.txt"
timeout 150 "$python" -m tests.gpu.benchmark --device "$device" --to "$out/gpu.md" ${ROWS:+--rows "$ROWS"} || failed=1
{
    printf '\n## Tests\n\n```\n'
    tail -n 3 "$out/tests.txt"
    printf '```\n'
} >>"$out/gpu.md"
if "$python" -c 'import ray, zarr, polars, mlflow' 2>/dev/null; then
    timeout 120 "$python" -m genrep_dist run paper/mnist --profile gpu --for 90s --store "$out/store"
    "$python" -m genrep_dist export truth mnist-gpu --store "$out/store" --to "$out/truth" || echo 'no model was retrained'
fi
exit $failed
