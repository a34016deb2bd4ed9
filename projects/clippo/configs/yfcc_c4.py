"""CLIPPO on images with alt-texts and, in the same batches, pairs of sentences of C4 (Tschannen et al. 2023).

    ./bazelw run //projects/clippo:train -- --config=projects/clippo/configs/yfcc_c4.py:c4=25,font=unifont.hex

Arguments:
  pairs: the images and their texts, a TFDS dataset with `image` and `text` (YFCC-100M has no builder, so give yours),
    `coco_captions`, or a FILE.jsonl with these keys.
  c4: how many percent of a batch are sentence pairs, 0, 25, 50 or 75; 100 trains on text alone.
  text: where they are from, a TFDS dataset with `text`, or a FILE.jsonl.
  labelled: percent of a batch that are labelled images of ImageNet-21k, classified by a second head. The paper
    co-trains on JFT-4B, which is not public; the weights of the two losses, 1 and 1, are ours.
  init: a ViT to start from, the paper's is howto-i21k-B/16; `none` starts from scratch.
  font: "unifont-9.0.06", that of the published models, is fetched; or a .hex file, see core/pp/render/fonts.py.
  variant, res: of the tower.
  tests: what is evaluated, see core/evaluators/published_evals.py, or none.

The number of images seen does not go down with c4 up to 50 %: 250,000 steps become 333,333 and 500,000.
Weights that the authors published, to evaluate: --weights=yfcc100m_i21k_init_25c4 (core/checkpoint/catalog.json).
"""

from core import config as config_lib
from core.evaluators import published_evals

_IMAGENET21K_CLASSES = 21_843


def get_config(arg=None):
  arg = config_lib.parse_arg(
    arg,
    pairs="yfcc100m",
    c4=25,
    text="c4/en",
    labelled=0,
    init="howto-i21k-B/16",
    font="unifont-9.0.06",
    variant="B/16",
    res=224,
    tests="imagenet2012+coco",
    runlocal=False,
  )
  if arg.runlocal:
    arg.update(pairs="coco_captions", init="none", font="ascii", c4=20, labelled=20, res=32, tests="coco")
  config = config_lib.ConfigDict()

  config.seed = 0
  config.total_steps = min(500_000, int(250_000 / max(1 - (arg.c4 + arg.labelled) / 100, 0.5)))
  config.loss = "softmax"

  to_range = "value_range(-1,1)|value_range(-1,1,key='labels')"
  keep = "keep('image','labels')"
  pp_img = f"decode|resize({arg.res})"
  draw = lambda inkey, outkey: f"render_unifont({arg.res},font={arg.font!r},inkey='{inkey}',outkey='{outkey}')"
  text_of = "coco_captions|choice(inkey='captions',outkey='text')|" if arg.pairs == "coco_captions" else ""

  # Texts are cut to what an image holds, and those that are empty or of one word only are left out.
  parts = {
    "pairs": (100 - arg.c4 - arg.labelled, _data(arg.pairs), f"{pp_img}|{text_of}{draw('text', 'labels')}|{to_range}"),
    "c4": (arg.c4, _data(arg.text), f"sentence_pair|{draw('first', 'image')}|{draw('second', 'labels')}|{to_range}"),
  }
  if arg.labelled:
    parts = {name: (share, data, f"{pp}|paired") for name, (share, data, pp) in parts.items()}
    labelled = f"{pp_img}|value_range(-1,1)|labelled({_IMAGENET21K_CLASSES})"
    parts["i21k"] = (arg.labelled, dict(name="imagenet21k", split="full[51200:]"), labelled)
    keep = "keep('image','labels','label')"
    config.co_training = dict(labelled="i21k", num_classes=_IMAGENET21K_CLASSES, loss="sigmoid_xent", head_bias=-10.0)
  parts = {name: part for name, part in parts.items() if part[0] > 0}
  config.input = dict(
    data={name: share for name, (share, _, _) in parts.items()},
    batch_size=10_240,
    shuffle_buffer_size=250_000,
    skip_errors=True,
    **{name: dict(data=data, pp=f"{pp}|{keep}") for name, (_, data, pp) in parts.items()},
  )

  config.model_name = "one_tower"
  config.model = dict(image=dict(variant=arg.variant, pool_type="map"), out_dim=768, temperature_init=10.0)
  if arg.init != "none":
    config.model_init = dict(image=arg.init)
    # A classifier's head, and what it pools with, are not CLIPPO's.
    config.model_load = dict(img_load_kw=dict(dont_load=["(head|MAPHead_0)/.*|cls"]))

  config.optax_name = "scale_by_adafactor"
  config.grad_clip_norm = 1.0
  config.lr = 1e-3
  config.wd = 1e-4
  config.schedule = dict(decay_type="rsqrt", timescale_steps=10_000, warmup_steps=10_000, cooldown_steps=10_000)

  config.evals = published_evals.image_text(
    f"{pp_img}|value_range(-1,1)",
    f"{draw('text', 'labels')}|value_range(-1,1,key='labels')",
    tests=arg.tests,
    batch_size=1_024,
    log_steps=10_000,
  )
  config.log_training_steps = 50
  config.ckpt_steps = 1_000
  config.keep_ckpt_steps = 50_000

  if arg.runlocal:
    config.total_steps = 20
    config.model = dict(image=dict(variant="mu/16", pool_type="map"), out_dim=16, temperature_init=10.0)
    config.input.batch_size = 20
    config.schedule = dict(decay_type="rsqrt", timescale_steps=10, warmup_steps=2, cooldown_steps=2)
    config.input.i21k.data.split = "full"
    for each in config.evals.values():
      each.update(batch_size=20, log_steps=10)
  return config


def _data(name):
  return dict(source="jsonl", path=name) if name.endswith(".jsonl") else dict(name=name, split="train")
