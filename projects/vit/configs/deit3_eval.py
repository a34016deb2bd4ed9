"""DeiT III evaluated as published (Touvron et al. 2022, 2204.07118): ImageNet-1k, its ReaL labels, and ImageNet-v2.

    ./bazelw run //tools:prepare_data -- imagenet2012_real imagenet_v2
    ./bazelw run //tools:evaluate -- --config=projects/vit/configs/deit3_eval.py --weights=deit3_B_384_1k

Arguments: `model` (deit3_{S,B,L}_{224,384}_{1k,21k}: 1k is trained on ImageNet-1k alone, 21k first on ImageNet-21k),
`tests` (val+real+v2). Trained, it takes one step with a learning rate of 0 and evaluates what it began with.

Images are resized so that the shorter side is as long as the crop (a crop ratio of 1), bicubically and with
antialiasing, and normalized by the mean and deviation of ImageNet.

Expected (the table of the paper's code release), on `val`, 224 px and 384 px: 1k, S 81.4 % and 83.4 %, B 83.8 % and
85.0 %, L 84.9 % and 85.8 %; 21k, S 83.1 % and 84.8 %, B 85.7 % and 86.7 %, L 87.0 % and 87.7 %.
"""

import re

from core import config as config_lib
from core.errors import UserError
from core.evaluators import published_evals


def get_config(arg=None):
  arg = config_lib.parse_arg(arg, model="deit3_B_384_1k", tests="val+real+v2", runlocal=False)
  match = re.fullmatch(r"deit3_([SBL])_(224|384)_(1k|21k)", arg.model)
  if not match:
    raise UserError(f"config argument model={arg.model!r} must be one of deit3_{{S,B,L}}_{{224,384}}_{{1k,21k}}")
  variant, res = match[1], 32 if arg.runlocal else int(match[2])
  config = config_lib.ConfigDict()

  config.seed = 0
  config.total_steps = 1
  config.num_classes = 1_000
  config.loss = "softmax_xent"

  config.model_name = "vit"
  config.model = dict(variant=f"{variant}/16", pool_type="tok", gelu="exact")
  config.model_init = arg.model

  pp = f"decode|resize_small({res},method='bicubic',antialias=True)|central_crop({res})|vgg_value_range"
  config.evals = published_evals.imagenet(pp, tests=arg.tests, alone=True, batch_size=512)

  # What is left is not for training: the loop wants an input, and an optimizer that changes nothing.
  first = next(iter(config.evals.values()))
  config.input = dict(data=first.data, batch_size=8, shuffle_buffer_size=8, pp=first.pp_fn)
  config.optax_name = "identity"
  config.lr = 0.0

  if arg.runlocal:
    config.model = dict(variant="mu/16", pool_type="tok")
    del config.model_init
    config.total_steps = 20
    for each in config.evals.values():
      each.batch_size = 8
  return config
