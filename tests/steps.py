"A tiny preset, its models, pairs of noise, and steps that come to harm: importable by the processes that tests of training start."
import os
import signal
import time
from dataclasses import replace

import torch

from ptacl.nets.encoders import CMREncoder, ECGEncoder
from ptacl.core.errors import PtaclError
from ptacl.nets.mae import MAE
from ptacl.nets.joint import PTACL, joint_loss
from ptacl.core.presets import paper_regression, workshop
from ptacl.data.pairs import Pairs
from ptacl.train.steps import joint_step, mae_cmr_step, mae_ecg_step

# of the paper's kind, as small as a workshop's
small_paper = replace(paper_regression, name="small_paper", ecg_crop=1500, ecg_layers=3, cmr_patch=(2, 21, 21), cmr_layers=3, width=128,
                      heads=4, decoder_width=128, frozen_layers=1, proj_dim=64, sigma=0.0,
                      tau_global=0.07, tau_local=0.07, centred=True, augment=0.3,
                      batch_size=32, lr_mae=2e-3, lr_joint=3e-3, lr_tune=1e-3, epochs_mae=5, epochs_joint=5)
SIZES = dict(width=16, heads=2, ecg_layers=1, cmr_layers=1, frozen_layers=0, decoder_width=16, proj_dim=8, batch_size=4)
tiny = replace(small_paper, **SIZES)
stems = replace(workshop, **SIZES)
KINDS = {"joint": (lambda: PTACL(tiny), joint_step), "stems": (lambda: PTACL(stems), joint_step),
         "ecg": (lambda: MAE(ECGEncoder(tiny)), mae_ecg_step),
         "cmr": (lambda: MAE(CMREncoder(tiny)), mae_cmr_step)}


def start(kind="joint"):
    torch.manual_seed(3)
    return KINDS[kind][0]()


def noise(n=11, seed=0):
    g = torch.Generator().manual_seed(seed)
    return Pairs(torch.randn(n, 12, 5000, generator=g), torch.arange(0.3, 10, 0.9).repeat(n, 1),
                 torch.randint(0, 256, (n, 50, 84, 84), dtype=torch.uint8, generator=g))


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


class Harm:
    "A step at whose call number `at` process 1 gets a signal."
    def __init__(self, how=signal.SIGKILL, at=4): self.how, self.at, self.calls = how, at, 0

    def __call__(self, model, batch):
        self.calls += 1
        if self.calls == self.at and os.environ.get("RANK") == "1": os.kill(os.getpid(), self.how)
        return joint_loss(model, batch)


class Odd:
    "A step that is not finite in process 1 at its second call; every process notes the weights that it starts from."
    def __init__(self, folder): self.folder, self.calls = folder, 0

    def __call__(self, model, batch):
        self.calls += 1
        weights, out = sum(p.double().sum().item() for p in model.parameters()), joint_loss(model, batch)
        with open(f"{self.folder}/weights-{os.environ.get('RANK')}", "a") as f: print(weights, file=f)
        return out | {"loss": out["loss"] * (torch.nan if self.calls == 2 and os.environ.get("RANK") == "1" else 1)}


def slow(model, batch):
    time.sleep(0.2)
    return joint_loss(model, batch)


def refuses(model, batch): raise PtaclError("sim-00003 is not welcome here")
