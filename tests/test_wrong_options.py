"""What is handed to a sweep by mistake is told in a line, for users, whose calls nothing checks the types of."""

import subprocess
import sys
from pathlib import Path

CASES = {
    "vl.Drawing(seeds=3)": "seeds is 3; expected a list of whole numbers",
    "vl.plan(None, None, image)": "model is of type NoneType; expected HookedViT: such as HookedViT.from_pre",
    "vl.Drawing(seeds=[1.5])": "seed=1.5; expected a whole number",
    "vl.Drawing(batch_size='4')": "batch_size='4'; expected a whole number",
    "vl.Drawing(batch_size=2.5)": "batch_size=2.5; expected a whole number",
    "vl.Drawing(batch_size=True)": "batch_size=True; expected a whole number",
    "vl.Controls(draws=1.5)": "draws=1.5; expected a whole number",
    "vl.Controls(seed=None)": "seed=None; expected a whole number",
    "vl.Controls(seed=-1)": "seed=-1; expected at least 0",
    "vl.Controls(seed=2**63)": "seed=9223372036854775808; expected at most 9223372036854775807",
    "vl.Controls(drawn=5)": "drawn is 5; expected True or False",
    "vl.Execution(shard='0/4')": "shard='0/4'; expected (i, n) with 0 <= i < n, such as (0, 4)",
    "vl.Execution(shard=3)": "shard=3; expected (i, n)",
    "vl.Execution(shard=(0,))": "shard=(0,); expected (i, n)",
    "vl.Execution(shard=(0., 4.))": "shard=(0.0, 4.0); expected (i, n)",
    "vl.Execution(threads=1.5)": "threads=1.5; expected a whole number",
    "vl.Execution(threads=10**6)": "threads=1000000; expected at most 1024",
    "vl.Execution(executor=object())": "executor is of type object; expected an executor or the name of one",
    "vl.Beside(texts=['a star'])": "texts is ['a star']; expected a TextBank",
    "vl.Beside(gallery='x')": "gallery is 'x'; expected a Gallery",
    "vl.Beside(labels=['x'])": "labels is ['x']; expected ZeroShotLabels",
    "plan(model='mini')": "model is of type str; expected HookedViT: such as HookedViT.from_pretrained('mini')",
    "plan(drawing={'steps': 1})": "drawing is {'steps': 1}; expected vit_lens.Drawing(settings=",
    "plan(execution=(0, 4))": "execution is (0, 4); expected vit_lens.Execution(",
    "plan(beside='x')": "beside is 'x'; expected vit_lens.Beside(",
    "plan(controls=5)": "controls is 5; expected True, False or vit_lens.Controls(",
    "plan(lens=[])": "no lens given",
    "plan(sites='haeds')": "no site or group of sites 'haeds'; nearest: 'heads'",
    "plan(sites='L9H0')": "L9H0",
    "vl.sweep(model, None, image, out=3)": "out is 3; expected a path",
    "plan(lens=own(rows='al'))": "Own.rows is 'al'; expected 'readout' or 'all'",
    "plan(lens=own(parts='pooled'))": "Own.parts is 'pooled'; expected ('pooled',), ('tokens',) or both in a tuple",
    "plan(lens=own(settings=lambda self: None))": "Own.settings() is a NoneType; expected a dict",
    "plan(lens=own(settings=lambda self: {'a': float('nan')}))": "Own.settings() cannot be kept in a record",
    "run(own(clean=lambda self, embeds, cache: embeds))": "Own.clean returned a Tensor; expected a vit_lens.Condition",
    "run(own(read=lambda self, cache, sites: vl.Condition(pooled=torch.ones(1, 1, 32, dtype=int))))": (
        "Own read pooled as torch.int64; expected a floating-point tensor"
    ),
    "run(own(read=lambda self, cache, sites: cache['resid_post', 0][:, 5]))": "say rows = 'all'",
    "vl.Condition(pooled=np.ones((1, 4)))": "pooled of a condition is a ndarray; expected a torch.Tensor",
    "check_decoder(grid(takes={'tokens': '32'}))": "takes is {'tokens': '32'}; expected widths",
    "check_decoder(grid(batch_size=3))": "batch_size is 3; expected a method",
}

RUN = """
import sys, tempfile
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import numpy as np, tiny_sweep, tiny_token, torch
import vit_lens as vl
from vit_lens.decoders import check_decoder
out = Path(tempfile.mkdtemp())
model, image = tiny_sweep.tower(), tiny_sweep.pictures(out)[0]

def plan(model=model, **options):
    return vl.plan(model, None, image, **{"lens": "diffusion", "sites": "L0.resid_pre"} | options)

def own(**said):
    parts = {"reads": lambda self, site: True, "read": lambda self, cache, sites: None}
    return type("Own", (vl.Lens,), parts | said)()

def grid(**said):
    decoder, _ = tiny_token.make(model)
    vars(decoder).update(said)
    return decoder

def run(lens):
    vl.sweep(model, None, image, lens=lens, sites="L0.resid_pre", out=out / "run", progress=False)

for case in sys.argv[2:]:
    try:
        eval(case)
        print("no error")
    except vl.VitLensError as error:
        print(" ".join(str(error).split()))
    except Exception as error:
        print(repr(error))
"""


def test_what_is_given_by_mistake_is_told():
    command = [sys.executable, "-c", RUN, str(Path(__file__).parent), *CASES]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = dict(zip(CASES, done.stdout.splitlines(), strict=True))
    assert {case: said[case] for case, words in CASES.items() if words not in said[case]} == {}
