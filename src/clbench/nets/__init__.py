"""Nets: a body that turns inputs into features and a head that turns features into the outputs that compete."""

from clbench.nets.cnn import cnn
from clbench.nets.fcn import fcn
from clbench.nets.freeze import freeze
from clbench.nets.gpt import gpt_small
from clbench.nets.heads import MultiHead, SlicedHead
from clbench.nets.hf_body import hf_model
from clbench.nets.initialize import initialize
from clbench.nets.lora import add_lora
from clbench.nets.mlp import mlp
from clbench.nets.net import Net, features_of, features_on
from clbench.nets.pretrained import flatten_pixels, module_body, torchvision_model
from clbench.nets.resnet import resnet18_reduced, resnet18_vandeven
from clbench.nets.timm_body import timm_model
from clbench.nets.weights import init_from

__all__ = [
    "MultiHead",
    "Net",
    "SlicedHead",
    "add_lora",
    "cnn",
    "fcn",
    "features_of",
    "features_on",
    "flatten_pixels",
    "freeze",
    "gpt_small",
    "hf_model",
    "init_from",
    "initialize",
    "mlp",
    "module_body",
    "resnet18_reduced",
    "resnet18_vandeven",
    "timm_model",
    "torchvision_model",
]
