"""params.yaml and published.yaml as frozen, validated types.

read.py       reads both files
settings.py   the types of params.yaml's sections, but for the recipes (recipe.py)
faults.py     what is wrong with a file, in sentences
"""

from .read import Params, digest, find_project, load_params, network_of, workspace_of

__all__ = ["Params", "digest", "find_project", "load_params", "network_of", "workspace_of"]
