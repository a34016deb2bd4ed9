"""A small SigLIP on pictures of digits with captions: two towers from scratch in minutes, with nothing to download.

    ./bazelw run //projects/siglip:train

Captions are of several templates, some of which tell the digit alone, some its colour and place, too. Evaluated on
other handwritings: `zeroshot/digits`, pictures of one digit by ten prompts; `pairs`, of two digits by a hundred and
ten; `combinations`, of pairs that training never showed; `retrieval`, by captions that tell all.
"""

from core import config as config_lib
from core.data.sources import digit_captions


def get_config(arg=None):
  arg = config_lib.parse_arg(arg, runlocal=False)
  config = config_lib.ConfigDict()

  config.seed = 0
  config.total_epochs = 1 if arg.runlocal else 16
  config.loss = "sigmoid"

  tokens = "tokenize(16,model='digit_captions',eos='sticky',pad_value=1)"
  config.input = dict(
    data=dict(source="digit_captions", name="digit_captions", split="train"),
    batch_size=128,
    pp=f"value_range(-1,1)|choice(inkey='captions',outkey='text')|{tokens}|keep('image','labels')",
  )

  config.model_name = "two_towers"
  config.model = dict(
    image=dict(width=64, depth=2, mlp_dim=256, num_heads=4, patch_size=(8, 8), pool_type="map"),
    text=dict(width=64, depth=2, mlp_dim=256, num_heads=4, vocab_size=74),
    out_dim=(None, 64),
    temperature_init=10.0,
    # As many times less likely than not as there are texts in a batch; the paper's -10 is for 32,768 of them.
    bias_init=-5.0,
  )

  config.optax_name = "scale_by_adam"
  config.optax = dict(b2=0.95)
  config.grad_clip_norm = 1.0
  config.lr = 3e-3
  config.wd = 1e-4
  config.schedule = dict(decay_type="cosine", warmup_percent=0.1)

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
    for tower in (config.model.image, config.model.text):
      tower.update(width=16, depth=1, mlp_dim=32, num_heads=2)
    config.model.out_dim = (None, 16)
  return config
