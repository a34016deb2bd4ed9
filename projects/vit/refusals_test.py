"""Mistakes in the sections that all trainings share, and in flags, are refused by their whole path."""

from pathlib import Path

from core.testing import refusals
from projects.vit.train import TASK

test_a_mistake_is_one_line_that_names_it_and_nothing_is_written = refusals.make_test(
  Path(__file__).parent,
  TASK,
  [
    # Flags and files.
    ("workdri=x", "flag --workdri is unknown (did you mean 'workdir'?)"),
    ("cpu_devices=none", "flag --cpu_devices must be a whole number above 0, got 'none'"),
    (
      "workdir=xyz://bucket/run",
      "xyz://bucket/run: xyz:// is no place for files here; give a local path, or gs://BUCKET/NAME",
    ),
    ("process_id=1", "flag --process_id needs --coordinator and --processes beside it"),
    ("print_config=toml", "flag --print_config must be one of yaml, json, got 'toml'"),
    ("config=digits:runlocla", "config argument 'runlocla' is unknown (did you mean 'runlocal'?)"),
    # Types at the top.
    ("config.seed=-1", "config.seed must be a whole number in [0, 4294967295], got -1"),
    ("config.seed=1.5", "config.seed must be a whole number in [0, 4294967295], got 1.5"),
    ("config.lr=nan", "config.lr must be a number that is not negative, got 'nan'"),
    ("config.lr=1e999", "config.lr must be a number that is not negative, got inf"),
    ("config.lr=True", "config.lr must be a number that is not negative, got True"),
    ("config.num_classes=None", "config.num_classes must be a whole number from 1 on, got None"),
    ("config.total_steps=-3", "config.total_steps must be a number that is not negative, got -3"),
    ("config.model=vit", "config.model must be a dict, got 'vit'"),
    ("config.input=None", "config.input must be a dict, got None"),
    ("config.evals=3", "config.evals must be a dict"),
    ("config.a.b.c=1", "config.a is no key of classification"),
    ("config.lr.x=1", "config.lr is 0.003: it has no entry 'x' to set"),
    # Durations.
    ("config.ckpt_percent=1.5", "config.ckpt_percent must be a number in [0, 1], got 1.5"),
    ("config.log_training_hours=1", "config.log_training_hours is no key of classification"),
    # Schedules and the optimizer.
    ("config.schedule.warmup_percent=2", "config.schedule.warmup_percent must be a number in [0, 1], got 2"),
    ("config.schedule.decay_typ='cosine'", "config.schedule.decay_typ is no key of"),
    ("config.schedule=[('.*', {'decay_type': 'rsqt'})]", "config.schedule[0][1].decay_type"),
    ("config.schedule=[('heda/.*', None), ('.*', {})]", "config.schedule: 'heda/.*' matches no parameter"),
    ("config.schedule=[('(', {})]", "config.schedule[0][0] must be a regular expression, got '('"),
    ("config.optax.b1=2", "config.optax"),
    ("config.optax.beta1=0.9", "config.optax.beta1 is no key of"),
    ("config.agc.clipping=0", "config.agc.clipping must be a number above 0, got 0"),
    ("config.ema.decay=1", "config.ema.decay must be a number in [0, 1), got 1"),
    ("config.grad_accum_steps=0", "config.grad_accum_steps must be a whole number from 1 on, got 0"),
    ("config.lr_mults=[('heda/.*', 2.0)]", "config.lr_mults: 'heda/.*' matches no parameter"),
    ("config.wd_mults=[('.*', -1.0)]", "config.wd_mults[0][1] must be a number that is not negative, got -1.0"),
    # The mesh.
    ("config.mesh=[('data', 0)]", "config.mesh[0][1]"),
    ("config.mesh='automatic'", "config.mesh must be"),
    ("config.sharding_strategy=[('heda/.*', 'replicate'), ('.*', 'fsdp')]", "config.sharding_strategy: 'heda/.*'"),
    ("config.sharding_rules=[('act_btach', 'data')]", "config.sharding_rules[0][0] must be one of 'act_batch'"),
    # Data, preprocessing and evaluators.
    ("config.input.data.source=tdfs", "config.input.data.source: there is no 'tdfs' (did you mean 'tfds'?)"),
    ("config.input.data.splt=train", "config.input.data.splt is no key of"),
    ("config.input.data.split=train[:", "config.input.data.split"),
    ("config.input.pp=resize(8", "config.input.pp"),
    ("config.input.pp=resize('8')", "config.input.pp"),
    ("config.evals.test.type=clasification", "config.evals.test.type: there is no 'clasification' (did you mean"),
    ("config.evals.test.pred=predictions", "config.evals.test.pred"),
    ("config.evals.test.batch_size=0", "config.evals.test.batch_size must be a whole number in [1, 1048576], got 0"),
    ("config.evals.test.pp_fn=value_range(-1,1", "config.evals.test.pp_fn"),
    (
      (
        "config.ema={'decay': 0.9}",
        "config.evals.a_ema={'data': {'name': 'digits', 'split': 'test'}, 'pp_fn': 'value_range(-1, 1)'}",
      ),
      "config.evals.a_ema names an evaluation of the average",
    ),
    ("config.ckpt_steps=0", "config.ckpt_steps must be above 0; the last step has its own whatever it is"),
    ("config.log_training_percent=0", "config.log_training_percent must be above 0"),
    ("config.evals.test.log_epochs=0", "config.evals.test.log_epochs must be above 0; leave it out to evaluate after"),
    ("config.evals.time={'data': {'name': 'digits', 'split': 'test'}, 'pp_fn': ''}", "config.evals 'time' is the"),
    (f"config.evals.{'x' * 300}={{'data': {{'name': 'digits', 'split': 'test'}}, 'pp_fn': ''}}", "config.evals 'xxxxx"),
    ("config.input.batch_size=2147483648", "config.input.batch_size must be a whole number in [1, 1048576], got"),
    ("config.total_epochs=1e12", "config.total_epochs must be at most 2,147,483,647 steps, got"),
    ("config.profile_steps=(5_000, 6_000)", "config.profile_steps must be steps of the run, 1 to"),
    ("config.profile_steps=(5, 3)", "config.profile_steps are the first and the last step, got (5, 3)"),
    ("config.resume=nowhere", "config.resume: no checkpoint at nowhere"),
    # Weights.
    ("config.model_init=nowhere", "config.model_init: weights 'nowhere': neither a file nor"),
    (f"config.model_init={'x' * 5_000}", "config.model_init: path 'xxx"),
    ("config.model_init=xyz://a/b.npz", "config.model_init: xyz://a/b.npz: xyz:// is not read"),
    (
      ("config.model.pool_type=none", "config.input.batch_size=16", "config.evals={}"),
      "config.model gives outputs of shape (16, 10) an image, not a number a class; choose a pool_type",
    ),
    (
      ("config.model.swiglu=True", "config.model.gelu=exact"),
      "config.model.gelu is of no effect where swiglu=True, whose MLPs have a SiLU; leave it out",
    ),
    ("config.input.pp=value_range(0, 0)", "config.input.pp: pp op value_range: vmin and vmax are both 0.0: nothing"),
    (
      "config.input.pp=onehot(10, key='label', on=0.5, off=0.5)",
      "config.input.pp: pp op onehot: on and off are both 0.5: nothing",
    ),
    (
      "config.model.patch_size=(3, 3)",
      "config.model: images must be [batch, height, width, channels] with a size divisible by",
    ),
  ],
)
