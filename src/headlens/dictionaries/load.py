"""`hl.dictionaries.load`: one way to name a dictionary, whatever its format.

load("folder")                                                  SAELens: cfg.json and sae_weights.safetensors
load("gpt2-small_L5_Hcat_z_lr1.00e-03_..._v9.pt")               attention output: a .pt and its _cfg.json
load("gpt2-small-res-jb", "blocks.5.hook_resid_pre")            a published release, fetched through SAELens
"""

from pathlib import Path
from typing import Any

import torch

from headlens._errors import DataError
from headlens.dictionaries.attention_out import read_pair, stem_of
from headlens.dictionaries.autoencoder import Autoencoder
from headlens.dictionaries.dictionary import Convention
from headlens.dictionaries.files import dtype_of
from headlens.dictionaries.saelens import read_folder, read_release


def load(
    source: str | Path,
    sae_id: str | None = None,
    *,
    dtype: str | torch.dtype | None = None,
    device: Any = None,
    activation_scale: float | None = None,
    convention: Convention | None = None,
) -> Autoencoder:
    """Read a dictionary.

    Parameters
    ----------
    source
        A folder, one file of a pair, or the name of a published release (or of a hub repository).
    sae_id
        Which dictionary of the release, or which folder in `source`.
    dtype
        Precision of the weights; None: what its config says.
    activation_scale
        The number that activations were multiplied by before training, where the config says that they were and the
        weights do not have it: sqrt(d_in) over the mean length of an activation.
    convention
        How what it was trained on differs from what headlens shows at its site; None: as its files say.

    Raises
    ------
    DataError
        If it is not there, damaged, does not fit its config, or is of a kind that cannot be read.
    InvalidWeights
        If weights are NaN or infinite.
    MissingExtra
        If it is a published release and SAELens is not installed.
    """
    path = Path(source)
    precision = None if dtype is None else dtype_of(dtype, "dtype=")
    folder = path / sae_id if path.is_dir() and sae_id is not None else path
    if folder.is_dir():
        made = read_folder(folder, dtype=precision, activation_scale=activation_scale, convention=convention)
    elif (stem := stem_of(path)) is not None and sae_id is None:
        if activation_scale is not None:
            raise DataError(f"{path} does not scale activations by a number: leave activation_scale out.")
        made = read_pair(stem, dtype=precision, convention=convention)
    elif sae_id is None or path.exists() or folder != path:
        raise DataError(
            f"{folder} is no folder with a dictionary, and no .pt with its _cfg.json beside it. Of a published "
            "release, name the dictionary too: load('gpt2-small-res-jb', 'blocks.5.hook_resid_pre')."
        )
    else:
        made = read_release(
            str(source), sae_id, dtype=precision, activation_scale=activation_scale, convention=convention
        )
    return made if device is None else made.to(device=device)
