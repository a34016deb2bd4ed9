"""The table of rules, a rule a line: what each key, evaluator, op, model and option of big_vision is here.

`tools.port_config.rule.Rule` says what the columns are: the name there, what becomes of it, the name here where it is
another, and what a reader is told. The first rule that matches decides. The page docs/from_big_vision.md is made of it.
"""

from tools.port_config import eval_values as e
from tools.port_config import pp_strings as pp
from tools.port_config import values as v
from tools.port_config.rule import IDLE, KEPT, OTHER, REFUSED, RENAMED
from tools.port_config.rule import Rule as R

AS_IF_ABSENT = "as if it was not given"
UNKNOWN = "no published trainer reads it"
_RANDOM = "the draws of one seed are others here"
_NOT_PUBLISHED = "big_vision has not published this evaluator, so the entry could not run there; it is left out"
_ZEROSHOT = "the default of zero-shot classification"
_FIRST = "it runs before the first step, too; without log_* then alone"
_ROOT = "'-inf', as big_vision pools; the weights of BiT keep the zeros that they were trained with"
_IDLE_RULES = "a regex that matches nothing is refused here; the dry run leaves it out"
_MEMORY = "what is kept ready, and how much of it, is settled here"

# The project of a config, by its keys and the name of its model (or student): `to` tells whether it is this one.
PROJECTS = (
  R(
    "flexi",
    KEPT,
    "flexivit",
    "",
    lambda config, name: "flexi" in config or name.endswith(("flexi.vit", "flexivit.vit")),
  ),
  R("teachers", KEPT, "distill", "", lambda config, name: "teachers" in config),
  R("gsam", KEPT, "gsam", "", lambda config, name: "gsam" in config),
  R("mlp_mixer", KEPT, "mixer", "", lambda config, name: name == "mlp_mixer"),
  R("proj.clippo.one_tower", KEPT, "clippo", "", lambda config, name: name == "proj.clippo.one_tower"),
  R("two towers with bias_init", KEPT, "siglip", "", lambda config, name: name == v.TOWERS and v.has_bias(config)),
  R("two towers without", KEPT, "lit", "", lambda config, name: name == v.TOWERS),
  R("vit, bit, bit_paper", KEPT, "vit", "", lambda config, name: name in ("vit", "bit", "bit_paper")),
)

KEYS = (
  # The run.
  R("seed", KEPT, "", _RANDOM, same=False),
  R("total_UNIT", KEPT),
  R("num_epochs", RENAMED, "total_epochs"),
  R("no total_UNIT", OTHER, "total_steps", "a config that only evaluates takes no step", absent=v.no_steps),
  R("log_training_UNIT", KEPT),
  R("ckpt_UNIT", KEPT),
  R("checkpoint_UNIT", RENAMED, "ckpt_UNIT"),
  R("no ckpt_UNIT", OTHER, "ckpt_steps", "there no checkpoint is written; here one always is", absent=v.ckpt),
  R("keep_ckpt_UNIT", KEPT),
  R("keep_checkpoint_UNIT", RENAMED, "keep_ckpt_UNIT"),
  R("resume", KEPT, "", "", v.given),
  R("resume_checkpoint", RENAMED, "resume", "", v.given),
  # What is trained.
  R("model_name", RENAMED, "", "", v.family),
  R("model", KEPT, "", "", v.model),
  R("model_init", KEPT, "", "BiT's names say their size here, `BiT-M-R50x1`", v.weights),
  R("model_load", KEPT, "", "", v.given),
  R("num_classes", KEPT, "", "", v.classes),
  R("loss", KEPT, "", "a distillation reads distance, and the trainers of images and texts have one each", v.loss),
  R("no loss", OTHER, "loss", "each trainer has its own where none is given", absent=v.absent_loss),
  R("loss_use_global_batch", IDLE, "", "all examples of the batch are compared, always"),
  R("init_head_bias", KEPT, "", "", v.head_bias),
  R("mixup.p", KEPT, "", "there within each device's part of the batch, here within the whole", same=False),
  R("mixup.n", IDLE, "", "two examples are mixed", v.only(2)),
  R("mixup.fold_in", IDLE, "", "the weights of a seed are other draws here anyway"),
  R("teachers", KEPT, "", "of several teachers the distances are averaged here, and added there", same=False),
  R("TEACHER_name", RENAMED, "", "", v.family),
  R("TEACHER_init", KEPT, "", "", v.weights),
  R("TEACHER_load", KEPT, "", "", v.given),
  R("TEACHER", KEPT, "", "", v.model),
  R("distance", KEPT),
  R("distance_kw", KEPT, "", "", v.given),
  R("flexi", KEPT, "", "the sizes drawn for the steps of a seed are others here", same=False),
  # How it is trained.
  R("optax_name", RENAMED, "", "", v.transformation),
  R("no optax_name", OTHER, "optax_name", "a config that only evaluates", absent=v.of_evaluation("identity")),
  R("optax", KEPT, "", "", v.optimizer_arguments),
  R("lr", KEPT),
  R("no lr", OTHER, "lr", "a config that only evaluates", absent=v.of_evaluation(0.0)),
  R("lr_mults", KEPT, "", _IDLE_RULES, v.pairs),
  R("wd", KEPT, "", "", v.given),
  R("wd_mults", KEPT, "", _IDLE_RULES, v.pairs),
  R("grad_clip_norm", KEPT, "", "", v.given),
  R("grad_clip_per_example", KEPT),
  R("schedule", KEPT, "", _IDLE_RULES, v.schedule),
  R("gsam", RENAMED, "sam", "lr_max, lr_min: of the schedule; below lr_min rho stays rho_min", v.sam, same=False),
  # On which devices.
  R("mesh", KEPT, "", "", v.pairs),
  R("no mesh", OTHER, "mesh", "all devices share the batch, and each holds all parameters", absent=v.data_parallel),
  R("sharding_strategy", RENAMED, "", "names have no `params/` in front here", v.strategy),
  R("sharding_rules", KEPT, "", "", v.pairs),
  R("param_sharding", RENAMED, "sharding_strategy", "", v.fully_sharded),
  # The training data.
  R("input.data", KEPT, "", "", v.source),
  R("no input.data", OTHER, "input.data", "a config that only evaluates gets zeros", absent=v.zeros_of_shapes),
  R("input.batch_size", KEPT),
  R("no input.batch_size", OTHER, "input.batch_size", "a config that only evaluates", absent=v.batch_of_evaluation),
  R("input.shuffle_buffer_size", KEPT, "", "which examples meet in a batch is another draw here", v.given, same=False),
  R("no input.shuffle_buffer_size", OTHER, "input.shuffle_buffer_size", "the order of the files", None, v.file_order),
  R("input.cache_raw", KEPT),
  R("input.pp", KEPT, "", "", pp.translated),
  R("input.pre_filter_fn", KEPT, "", "in words, `label < 100`; a function of Python is refused", v.condition),
  R("input.post_filter_fn", KEPT, "", "in words, `label < 100`; a function of Python is refused", v.condition),
  R("input.keep_only", KEPT),
  R("input.skip_errors", KEPT),
  R("input.prefetch", IDLE, "", _MEMORY),
  R("input.cache", IDLE, "", _MEMORY),
  R("input.num_parallel_calls", IDLE, "", _MEMORY),
  R("input.pack", REFUSED, "", "sequences are not packed here", v.only(None, False)),
  R("input.PART.data", KEPT, "", "", v.source),
  R("input.PART.shuffle_buffer_size", KEPT, "", _RANDOM, v.given, same=False),
  R("no input.PART.shuffle_buffer_size", OTHER, "input.PART.shuffle_buffer_size", "files' order", None, v.file_order),
  R("input.PART.cache_raw", KEPT),
  R("input.PART.pp", KEPT, "", "", pp.translated),
  R("input.PART.pre_filter_fn", KEPT, "", "a condition in words", v.condition),
  R("input.PART.post_filter_fn", KEPT, "", "a condition in words", v.condition),
  R("input.PART.prefetch", IDLE, "", _MEMORY),
  R("input.PART.num_parallel_calls", IDLE, "", _MEMORY),
  # The layout of older heads.
  R("dataset", RENAMED, "input.data.name"),
  R("train_split", RENAMED, "input.data.split"),
  R("dataset_dir", RENAMED, "input.data.data_dir", "", v.given),
  R("pp_train", RENAMED, "input.pp", "", pp.translated),
  R("batch_size", RENAMED, "input.batch_size", "", v.unless_input),
  R("shuffle_buffer_size", RENAMED, "input.shuffle_buffer_size", "", v.given),
  R("cache_raw", RENAMED, "input.cache_raw"),
  R("batch_size_eval", RENAMED, "input.batch_size", "evaluations without their own have it", v.unless_input),
  # Evaluations.
  R("evals.NAME.type", RENAMED, "", "", e.evaluator),
  R("no evals.NAME.type", OTHER, "evals.NAME.type", "the evaluation's name is its type", absent=e.evaluator_of_name),
  R("evals.NAME.pred", RENAMED, "", "", e.prediction),
  R("evals.NAME.pred_kw", KEPT),
  R("evals.NAME.prefix", KEPT),
  R("evals.NAME.log_UNIT", KEPT),
  R("evals.NAME.skip_first", RENAMED, "evals.NAME.first", "the other of True and False", e.first),
  R("no evals.NAME.skip_first", OTHER, "evals.NAME.first", _FIRST, None, e.always_first),
  R("evals.NAME.batch_size", KEPT, "", "", v.given),
  R("evals.NAME.cache", KEPT),
  R("evals.NAME.cache_final", RENAMED, "evals.NAME.cache"),
  R("evals.NAME.cache_raw", IDLE, "", _MEMORY),
  R("evals.NAME.prefetch", IDLE, "", _MEMORY),
  R("evals.NAME.data", KEPT, "", "", v.source),
  R("evals.NAME.dataset", RENAMED, "evals.NAME.data.name"),
  R("evals.NAME.split", RENAMED, "evals.NAME.data.split"),
  R("no evals.NAME.split", OTHER, "evals.NAME.data.split", "retrieval reads the test split", absent=e.test_split),
  R("evals.NAME.data_dir", RENAMED, "evals.NAME.data.data_dir", "", v.given),
  R("evals.NAME.pp_fn", KEPT, "", "", pp.translated),
  R("evals.NAME.pp_img", OTHER, "", "decode stands in front: there TFDS has decoded the image", pp.decoded),
  R("no evals.NAME.pp_img", OTHER, "evals.NAME.pp_img", _ZEROSHOT, absent=e.pp_img),
  R("evals.NAME.pp_txt", KEPT, "", "", pp.translated),
  R("no evals.NAME.pp_txt", OTHER, "evals.NAME.pp_txt", _ZEROSHOT, absent=e.pp_txt),
  R("evals.NAME.pp_train", KEPT, "", "", pp.translated),
  R("evals.NAME.pp_eval", KEPT, "", "", pp.translated),
  R("evals.NAME.loss_name", KEPT),
  R("evals.NAME.label_key", KEPT),
  R("evals.NAME.use_global_batch", IDLE, "", "the examples of all devices are compared, always", v.only(True)),
  R("evals.NAME.datasets", KEPT, "", "", e.few_shot),
  R("evals.NAME.display_first", KEPT, "", "", v.pairs),
  R("evals.NAME.representation_layer", KEPT, "", "", e.layer),
  R("evals.NAME.shots", KEPT),
  R("evals.NAME.l2_reg", KEPT),
  R("evals.NAME.num_seeds", KEPT),
  R("evals.NAME.txt_name", KEPT, "", "", e.key_of_captions),
  R("evals.NAME.dataset_names", KEPT),
  R("no evals.NAME.dataset_names", OTHER, "evals.NAME.dataset_names", _ZEROSHOT, None, e.zeroshot_datasets),
  R("evals.NAME.dataset_overrides", RENAMED, "evals.NAME.datasets", "", e.overrides),
  R("evals.NAME.class_names", OTHER, "", "each data set has its own names here, CLIP's", e.class_names, same=False),
  R("evals.NAME.prompt_templates", RENAMED, "evals.NAME.templates", "the set is written out", e.templates),
  R("no evals.NAME.prompt_templates", OTHER, "evals.NAME.templates", _ZEROSHOT, None, e.default_templates),
  R("evals.NAME.canonicalize", KEPT),
  R("evals.NAME.first_class_name_only", KEPT),
  R("no evals.NAME.first_class_name_only", OTHER, "evals.NAME.first_class_name_only", _ZEROSHOT, None, e.first_name),
  R("evals.NAME.async_delay", IDLE, "", _MEMORY),
  R("evals.NAME.outfile", OTHER, "", "a name in the workdir's folder of the evaluation", e.outfile),
  R("evals.NAME.distances", KEPT, "", "metrics are named by kind, then by arguments", e.distances),
  R("evals.NAME.what", KEPT, "", "the distances are of the logits", v.only(["logits", "logits"], ("logits", "logits"))),
  # What no number depends on.
  R("pp_modules", IDLE, "", "all ops are there, always"),
  R("prefetch_to_device", IDLE, "", _MEMORY),
  R("prefetch_to_host", IDLE, "", _MEMORY),
  R("aggressive_cache", IDLE, "", _MEMORY),
  R("ckpt_timeout", IDLE, "", "a checkpoint is waited for as long as it takes"),
  R("checkpoint_timeout", IDLE, "", "a checkpoint is waited for as long as it takes"),
  R("mesh_allow_split_physical_axes", IDLE, "", "JAX places the mesh"),
  R("init_shapes", IDLE, "", "the model is made for what the preprocessing leaves"),
  R("init_types", IDLE, "", "the model is made for what the preprocessing leaves"),
  R("optim_name", IDLE, "", UNKNOWN),
  R("optim_sharding", IDLE, "", "the state of the optimizer lies as its parameters do"),
  R("fewshot", IDLE, "", "it stands beside evals, where no trainer reads it"),
  R("representation_layer", IDLE, "", UNKNOWN),
  R("res", IDLE, "", "an argument that the config kept"),
  R("runlocal", IDLE, "", "an argument that the config kept"),
  R("variant", IDLE, "", "an argument that the config kept"),
  R("name", IDLE, "", "an argument that the config kept"),
)  # fmt: skip

# By `evals.NAME.type`; of one without a name here, the entry is left out.
EVALUATORS = (
  R("classification", KEPT, "", "prec@1 and loss; calibration besides"),
  R("mean", KEPT),
  R("save", KEPT, "", "outfile is a name in the workdir"),
  R("fewshot_lsr", RENAMED, "fewshot", "one number for all seeds; which examples are drawn differs", same=False),
  R("proj.image_text.contrastive", RENAMED, "contrastive", "ncorrect_minibatch is called prec@1"),
  R("proj.image_text.retrieval", RENAMED, "retrieval"),
  R("proj.image_text.discriminative_classifier", RENAMED, "zeroshot", "all names of classes are CLIP's", same=False),
  R("proj.distill.distance", RENAMED, "agreement"),
  R("proj.distill.cka", RENAMED, "agreement", "big_vision has not published it; here it is the metric cka", same=None),
  R("classification_with_labelmap", IDLE, "", _NOT_PUBLISHED, same=None),
  R("timing", IDLE, "", f"{_NOT_PUBLISHED}; tools/bench measures", same=None),
)

# What else is told of pp strings of one config.
OPS_TOLD = (
  R("||", IDLE, "", "an empty op does nothing"),
  R("onehot of imagenet21k", OTHER, "onehot", "TFDS has no imagenet21k; the labels of ours stand under `label`"),
)

OPS = (
  R("decode", KEPT, "", "by the same decoder; photos whose EXIF data turn them are turned if upright=True"),
  R("resize", KEPT),
  R("resize_small", KEPT),
  R("resize_long", KEPT),
  R("inception_crop", KEPT, "", _RANDOM, same=False),
  R("decode_jpeg_and_inception_crop", KEPT, "", _RANDOM, same=False),
  R("random_crop", KEPT, "", _RANDOM, same=False),
  R("central_crop", KEPT),
  R("flip_lr", KEPT, "", _RANDOM, same=False),
  R("randaug", KEPT, "", f"each transformation is the same; {_RANDOM}", same=False),
  R("value_range", KEPT),
  R("vgg_value_range", KEPT),
  R("clip_value_range", KEPT),
  R("onehot", KEPT),
  R("keep", KEPT),
  R("drop", KEPT),
  R("copy", KEPT),
  R("flatten", KEPT),
  R("reshape", KEPT),
  R("squeeze_last_dim", KEPT),
  R("concat", KEPT),
  R("pad_to_shape", KEPT),
  R("rag_tensor", KEPT),
  R("lookup", KEPT),
  R("setdefault", KEPT),
  R("strfmt", KEPT),
  R("choice", KEPT, "", _RANDOM, same=False),
  R("choice_no_replacement", KEPT, "", _RANDOM, same=False),
  R("coco_captions", KEPT),
  R("lower", KEPT),
  R("tokenize", KEPT, "", "empty texts are kept by empty='keep', which the port writes"),
  R("bert_tokenize", KEPT, "", "empty texts are kept by empty='keep', which the port writes"),
  R("clip_i1k_label_names", KEPT),
  R("render_unifont", KEPT, "", "with the font of big_vision, Unifont 9.0.06, where its file is given"),
  R("convert_to_video", REFUSED, "", "there are no videos here", same=None),
)

# Names of models, and of towers within models.
MODELS = (
  R("vit", KEPT),
  R("bit", KEPT),
  R("bit_paper", KEPT, "", "also called resnet"),
  R("mlp_mixer", RENAMED, "mixer"),
  R("proj.flexi.vit", RENAMED, "flexi_vit"),
  R("xp.flexivit.vit", RENAMED, "flexi_vit"),
  R("proj.image_text.two_towers", RENAMED, "two_towers"),
  R("proj.image_text.text_transformer", RENAMED, "text_transformer"),
  R("proj.flaxformer.bert", RENAMED, "bert"),
  R("proj.clippo.one_tower", RENAMED, "one_tower"),
)

# Options of models, FAMILY.OPTION, that are not the same; all others have their names and values.
OPTIONS = {
  ("bit_paper", "scan"): R("bit_paper.scan", IDLE, "", "its units are not alike, there is nothing to scan"),
  ("bit", "scan"): R("bit.scan", IDLE, "", "its units are not alike, there is nothing to scan"),
  ("bit_paper", "root_padding"): R("no bit_paper.root_padding", OTHER, "root_padding", _ROOT, None, v.root_padding),
  ("bit_paper", "remat_policy"): R("bit_paper.remat_policy", IDLE, "", _MEMORY),
}

TRANSFORMATIONS = (
  R("scale_by_adam", KEPT),
  R("scale_by_lion", KEPT),
  R("trace", KEPT),
  R("identity", KEPT),
  R("big_vision.scale_by_adafactor", RENAMED, "scale_by_adafactor"),
  R("big_vision.momentum_hp", RENAMED, "momentum_hp"),
  R("big_vision.sgd", RENAMED, "identity"),
  R("any other of optax", KEPT, "", "with the arguments that optax declares"),
)

# What stands under other keys: predictions, sources, losses, weights and files of a run.
PREDICTIONS = (
  R("predict", KEPT, "", "the default of each evaluator"),
  R("student_fwd", RENAMED, "student"),
  R("TEACHER_fwd", RENAMED, "TEACHER"),
  R("student_TEACHER_fwd", RENAMED, 'dict(student="student", teacher="TEACHER")'),
  R("predict_seqhw=8", RENAMED, "predict_8"),
  R("student_seqhw=8", RENAMED, "student_8"),
  R("student_seqhw=8_TEACHER", RENAMED, 'dict(student="student_8", teacher="TEACHER")'),
  R("teacher_ensemble_fwd", REFUSED, "", "each teacher is evaluated by itself", same=None),
  R("loss", REFUSED, "", "classification reports the loss", same=None),
)
DISTANCES = (
  R("kl", KEPT),
  R("euclidean", KEPT),
  R("l2", KEPT),
  R("logsoftmax_euclidean", KEPT),
  R("hard", KEPT, "", "ls is label smoothing"),
  R("agree", KEPT, "", "of evaluations, `k` of the student's classes"),
)
SOURCES = (
  R("a name of TFDS", KEPT, "", "prepared as TFRecord files; tools:prepare_data prepares"),
  R("bv:dummy", RENAMED, 'source="zeros"'),
  R("bv:jsonl", RENAMED, 'source="jsonl"', "fname is path, fopen_keys is files"),
  R("any other bv:", REFUSED, "", "it belongs to a project that is not here", same=None),
)
FILES = (
  R("FILE.npz, FILE.npz:SUBTREE, gs://...", KEPT, "", "config.model_init; docs/weights.md"),
  R("WORKDIR/checkpoint.bv, checkpoint.bv-STEP, :SUBTREE", KEPT, "", "config.model_init; config.resume of a whole one"),
  R("WORKDIR/checkpoint.npz", KEPT, "", "of older heads; config.model_init and config.resume"),
  R("names of published weights, howto-i21k-B/16", KEPT, "", "core/checkpoint/catalog.json"),
  R("M-imagenet2012 and the like, of BiT", RENAMED, "BiT-M-R50x1-ILSVRC2012", "the size is part of the name"),
  R(
    "NAME.npz for model_init",
    RENAMED,
    "tools:export --to=big_vision",
    "and back: from weights here to a file for there",
  ),
  R("config.json of a workdir", KEPT, "", "tools:port_config reads it"),
  R("big_vision_metrics.txt", RENAMED, "metrics.jsonl", "a line a step in both"),
)
