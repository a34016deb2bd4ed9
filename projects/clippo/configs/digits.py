"""CLIPPO on handwritten digits and their captions, rendered: trains in a few minutes on a laptop, nothing to download.

    ./bazelw run //projects/clippo:train

An image shows a digit in a colour and in a quarter of a black square (core/data/sources/digit_captions.py); it and its
caption, drawn with the shipped bitmap font, go through one ViT with patches of 16 pixels. Argument: `texts`, how many
percent of a batch are pairs of two captions of one image, the second rendered in the place of the image, as the paper
trains on pairs of sentences.

Expected: zero-shot accuracy on held-out handwritings of at least 95 %.
"""

from core import config as config_lib
from core.data.sources import digit_captions

_RES = 64


def get_config(arg=None):
  arg = config_lib.parse_arg(arg, texts=20, runlocal=False)
  config = config_lib.ConfigDict()

  config.seed = 0
  config.total_steps = 20 if arg.runlocal else 2_400
  config.loss = "softmax"

  # 32 characters: the longest captions are cut, after what is most of them.
  draw = lambda inkey, outkey: f"render_text({_RES},wrap='char',inkey='{inkey}',outkey='{outkey}')"
  to_range = "value_range(-1,1)|value_range(-1,1,key='labels')|keep('image','labels')"
  pp_img = f"resize({_RES})|value_range(-1,1)"
  pp_txt = f"{draw('text', 'labels')}|value_range(-1,1,key='labels')"
  two = "choice(2,inkey='captions',outkey='text')|copy('text','other')|get_single('text',0)|get_single('other',1)"
  data = lambda split: dict(source="digit_captions", split=split, digits=1)
  parts = dict(
    images=dict(
      data=data("train"),
      pp=f"resize({_RES})|choice(inkey='captions',outkey='text')|{draw('text', 'labels')}|{to_range}",
    ),
    texts=dict(data=data("train"), pp=f"{two}|{draw('text', 'image')}|{draw('other', 'labels')}|{to_range}"),
  )
  shares = {name: share for name, share in dict(images=100 - arg.texts, texts=arg.texts).items() if share > 0}
  config.input = dict(data=shares, batch_size=64, **{name: parts[name] for name in shares})

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

  sides = dict(pp_img=pp_img, pp_txt=pp_txt, batch_size=128)
  config.evals = dict(
    zeroshot=dict(
      type="zeroshot",
      datasets=dict(
        digits=dict(
          data=data("test"),
          class_names=list(digit_captions.DIGITS),
          templates=list(digit_captions.DIGIT_PROMPTS),
        )
      ),
      log_percent=0.1,
      **sides,
    ),
    retrieval=dict(
      type="retrieval", data=data("test"), txt_name="caption", same_text_counts=True, log_percent=0.5, **sides
    ),
  )
  config.log_training_steps = 50
  config.ckpt_steps = 500

  if arg.runlocal:
    config.model.image.update(width=16, depth=1, mlp_dim=32, num_heads=2)
  return config
