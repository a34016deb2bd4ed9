from core import config as config_lib
from core.data.sources import digit_captions

RES = 64


def get_config(arg=None):
  arg = config_lib.parse_arg(arg, runlocal=False)
  config = config_lib.ConfigDict()

  config.seed = 0
  config.total_epochs = 10
  config.loss = "softmax"

  pp_img = f"resize({RES})|value_range(-1,1)"
  pp_txt = f"render_text({RES},wrap='char')|value_range(-1,1,key='labels')"
  config.input = dict(
    data=dict(source="digit_captions", split="train", digits=1),
    batch_size=64,
    pp=f"{pp_img}|choice(inkey='captions',outkey='text')|{pp_txt}|keep('image','labels')",
  )

  config.model_name = "one_tower"
  config.model = dict(
    image=dict(width=96, depth=3, mlp_dim=384, num_heads=4, patch_size=(16, 16), pool_type="gap", posemb="learn"),
    out_dim=64,
    temperature_init=10.0,
  )
  config.optax_name = "scale_by_adam"
  config.grad_clip_norm = 1.0
  config.lr = 2e-3
  config.wd = 1e-3
  config.schedule = dict(decay_type="cosine", warmup_percent=0.1)

  config.evals = dict(
    zeroshot=dict(
      type="zeroshot",
      datasets=dict(
        digits=dict(
          data=dict(source="digit_captions", split="test", digits=1),
          class_names=list(digit_captions.DIGITS),
          templates=list(digit_captions.DIGIT_PROMPTS),
        ),
      ),
      pp_img=pp_img,
      pp_txt=pp_txt,
      batch_size=128,
      log_percent=0.1,
    ),
    retrieval=dict(
      type="retrieval",
      data=dict(source="digit_captions", split="test", digits=1),
      txt_name="caption",
      same_text_counts=True,
      pp_img=pp_img,
      pp_txt=pp_txt,
      batch_size=128,
      log_percent=0.5,
    ),
  )
  config.log_training_steps = 50
  config.ckpt_steps = 1000
  return config
