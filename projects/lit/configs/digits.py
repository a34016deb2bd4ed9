"""A small LiT on pictures of digits with captions: trains in a minute on a laptop, with nothing to download.

    ./bazelw run //projects/lit:train

The image tower is the project's own, trained by `digits_tower` and shipped; `tower=FILE.npz` locks another one of its
size, from a run of yours. `embedded=FILE.npz` takes what the tower makes of the images from a file, made once by

    ./bazelw run //projects/lit:precompute -- --config=digits --output=runs/digits.npz
    ./bazelw run //projects/lit:train -- --config=digits:embedded=runs/digits.npz

Evaluated on other handwritings: `zeroshot/digits`, pictures of one digit by ten prompts; `pairs`, of two digits by a
hundred and ten; `combinations`, of pairs that training never showed; `retrieval`, by captions that tell all.
"""

from core import config as config_lib
from core import data_files
from core.data.sources import digit_captions

TOWER = data_files.find("projects/lit/towers/digits.npz")


def get_config(arg=None):
  arg = config_lib.parse_arg(arg, tower=str(TOWER), embedded="", runlocal=False)
  config = config_lib.ConfigDict()

  config.seed = 0
  config.total_epochs = 1 if arg.runlocal else 10
  config.loss = "softmax"

  tokens = "bert_tokenize(16,'digit_words')"
  labels = f"choice(inkey='captions',outkey='text')|{tokens}"
  config.input = dict(
    data=dict(source="digit_captions", name="digit_captions", split="train"),
    batch_size=128,
    pp=f"{labels}|value_range(-1,1)|keep('image','labels')",
  )
  if arg.embedded:
    config.input.data = dict(source="arrays", path=arg.embedded)
    config.input.pp = f"{labels}|keep('zimg','labels')"
    config.init_shapes = [(1, 16, 16, 3), (1, 16)]  # The image tower is still there, for the evaluators.

  config.model_name = "two_towers"
  config.model = dict(
    image=dict(width=48, depth=2, mlp_dim=192, num_heads=4, patch_size=(4, 4), pool_type="gap"),
    text_model="bert",
    text=dict(width=64, depth=2, mlp_dim=256, num_heads=4, vocab_size=110, max_len=16),
    out_dim=(None, 48),  # What the tower makes of an image is its embedding.
    temperature_init=10.0,
  )
  config.model_init = dict(image=arg.tower)
  # The classifier's head stays behind; the tower has none here.
  config.model_load = dict(img_load_kw=dict(dont_load=["head/.*"]))

  config.optax_name = "scale_by_adam"
  config.grad_clip_norm = 1.0
  config.lr = 2e-3
  config.wd = 1e-4
  config.schedule = [("img/.*", None), (".*", dict(decay_type="cosine", warmup_percent=0.1))]

  def test(split, digits, prompts):
    return dict(data=dict(source="digit_captions", split=split, digits=digits), templates=list(prompts))

  options = dict(pp_img="value_range(-1,1)", pp_txt=tokens, batch_size=240, log_percent=0.25)
  config.evals = dict(
    zeroshot=dict(
      type="zeroshot",
      datasets=dict(
        digits=test("test", 1, digit_captions.DIGIT_PROMPTS) | dict(class_names=list(digit_captions.DIGITS)),
        pairs=test("test", 2, digit_captions.PAIR_PROMPTS),
        combinations=test("test_combinations", 2, digit_captions.PAIR_PROMPTS),
      ),
      **options,
    ),
    retrieval=dict(
      type="retrieval",
      data=dict(source="digit_captions", split="test"),
      txt_name="caption",
      same_text_counts=True,
      **options,
    ),
  )
  config.log_training_steps = 50
  config.ckpt_steps = 500

  if arg.runlocal:
    config.model.text.update(width=16, depth=1, mlp_dim=32, num_heads=2)
  return config
