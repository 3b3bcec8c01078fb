# SPDX-License-Identifier: Apache-2.0
"""Every config key, each with a comment. The other files state only what differs.

A config file defines `get_config(preset)`, where `preset` is the part after the colon
in `--config=configs/cuhk.py:plus`. All configs are complete and locked: an unknown key
is an error that suggests similar ones. Any key can be set on the command line:
`--config.train.batch_size=128`.
"""

from ml_collections import ConfigDict

# Strength of A-SDM's weight under each rule, as `losses.matching.ALPHA` has it: a
# config is read before JAX, and must not import it.
ALPHA = {"official": 0.1, "paper": 10.0, "plus": 2.0}


def base() -> ConfigDict:
    """Return FMFA as its official code computes it: ViT-B/16, batch 64, 60 epochs.

    Sources: the official code of FMFA and IRRA. The learning rate and the float32
    parameters follow IRRA, because the released 5e-6 is meant for half-precision
    weights.
    """
    c = ConfigDict()
    c.name = "base"  # shown in tables and logs
    c.seed = 0  # determines order, augmentation, masking and new parameters
    c.method = "fmfa"  # fmfa, rde (person ids known) | weak (only pairs known)

    _data_and_model(c)
    _losses_and_optimizer(c)
    _run(c)
    return c


def _data_and_model(c: ConfigDict) -> None:
    c.data = ConfigDict()
    c.data.name = "cuhk_pedes"  # a reader of data_pipeline.datasets, or tfds:NAME
    c.data.root = "data"  # the folder (or URL) that contains the data set's own
    c.data.options = ConfigDict()  # for the reader (synthetic: identities, ..)
    c.data.people = 1.0  # share of the training people, by few-shot's fixed order
    c.data.tokenizer = "clip"  # clip | a folder with a Hugging Face CLIP tokenizer
    c.data.sampler = "shuffle"  # shuffle | identity (P identities x per_identity pairs)
    c.data.per_identity = 4  # K of the identity sampler
    c.data.caption_buckets = ()  # shorter lengths to which a batch's captions are cut
    c.data.noise = 0.0  # share of the training captions that are permuted: 0 to .99
    c.data.noise_seed = 1  # which ones; 1 is the seed of the published noise
    c.data.cache = "none"  # where decoded pictures are cached: none | memory | disk
    c.data.cache_dir = ""  # of the disk cache, on a local disk; "": ~/.cache/fmfa_jax

    c.model = ConfigDict()
    c.model.preset = "vit-b-16"  # vit-b-16 | vit-b-32 | vit-l-14 | demo
    c.model.image_size = (384, 128)  # height, width
    c.model.stride = 0  # distance between patches; 0: the patch size
    c.model.context_length = 77  # text positions, including start and end
    c.model.irr_layers = 4  # depth of the interaction encoder

    # How it computes; auto is what suits the device (fmfa_jax/training/settings.py).
    c.model.dtype = "auto"  # auto | float32 | bfloat16: of the towers
    c.model.precision = "highest"  # of float32 products: highest | high | default
    c.model.products = "auto"  # auto | float32 | compute: rounded after or before bias
    c.model.attention = "auto"  # auto | xla | cudnn: NVIDIA's fused kernel, or our own
    c.model.remat = "auto"  # auto | none | elementwise | full: recomputed, not stored
    c.model.scan_unroll = 0  # blocks of a tower in an iteration of its loop; 0: auto

    c.init = ConfigDict()
    c.init.path = ""  # initial weights, in any format that fmfa_jax.weights reads, in a
    # file, a folder or at hf://ORG/NAME[/FILE][@REVISION] of the Hugging Face Hub
    c.init.activation = "auto"  # auto (as the file states) | quick_gelu | gelu
    c.init.text_positions = "stretch"  # for another length: stretch | keep (first 20)
    c.init.drop_classifier = False  # True: skip a classifier of a different size


def _losses_and_optimizer(c: ConfigDict) -> None:
    c.losses = ConfigDict()  # name -> weight; with weight 0 it is not computed
    c.losses.sdm = 0.0  # similarity distribution matching, of IRRA
    c.losses.a_sdm = 1.0  # adaptive SDM, of FMFA
    c.losses.id = 1.0  # classification of the training people
    c.losses.mlm = 1.0  # masked words, by the interaction encoder (IRR)
    c.losses.efa = 1.0  # explicit fine-grained alignment, of FMFA
    c.losses.itc = 0.0  # image-text contrast, as CLIP was trained
    c.losses.cmpm = 0.0  # cross-modal projection matching
    c.losses.tal = 0.0  # triplet alignment, of RDE: a sum over the pairs

    c.loss = ConfigDict()  # how the losses are computed
    c.loss.scale = 50.0  # 1 / tau
    c.loss.a_sdm_weight = "official"  # official | paper | plus
    c.loss.a_sdm_alpha = ALPHA["official"]  # strength of that weight
    c.loss.efa_rule = "official"  # official | plus (ignores padding, by person)
    c.loss.mlm_rule = "official"  # official | plus (ignores padding)
    c.loss.itc_positives = "pair"  # pair | person (same identity counts as a match)
    c.loss.tal_tau = 0.015  # temperature of tal; RDE itself has rde.tau
    c.loss.tal_margin = 0.1  # of tal; RDE itself has rde.margin

    c.weak = ConfigDict()  # the weak method; the defaults are its official code
    c.weak.threshold = 0.7  # cosine above which two pairs are linked
    c.weak.strength = 0.1  # local target of a linked pair
    c.weak.links = 3  # rows mined for each anchor
    c.weak.rows = "all"  # all (mined rows are anchors too) | batch
    c.weak.exclude = "rank0"  # rank0 (the nearest row) | self (the sample's own row)
    c.weak.targets = "owner"  # owner | union (mined rows of the batch are no negatives)
    c.weak.same_image = "unknown"  # captions of one image: unknown | linked
    c.weak.itc_reduction = "mean"  # over the two directions: mean | sum
    c.weak.rate = 0.9  # share of the NEW feature in an updated memory row
    c.weak.memory_dtype = "float32"  # float32 | bfloat16
    c.weak.mask_first = "always"  # position 1 of the augmented caption: always | never

    c.rde = ConfigDict()  # RDE; the defaults are its published runs'
    c.rde.loss = "tal"  # tal | trl (sums over the pairs) | itc | sdm (means)
    c.rde.tau = 0.015  # temperature of tal and trl
    c.rde.margin = 0.1  # of tal and trl
    c.rde.width = 1024  # of the token selection embedding (TSE)
    c.rde.ratio = 0.3  # share of patches and of text positions that TSE selects
    c.rde.batch_norm = "frozen"  # frozen (as published) | batch (as released since)
    c.rde.lr = 1e-3  # of TSE's head, whatever optimizer.lr is
    c.rde.division = "mixture"  # mixture (CCD, before each epoch) | none (all pairs)
    c.rde.mixture = "loose"  # loose | tight (above 40 % noise, and on RSTPReid)
    c.rde.mask = 0.12  # share of a caption's words that training hides
    c.rde.replace = 0.04  # share of them that become another word
    c.rde.remove = 0.04  # share of them that are left out

    c.mask = ConfigDict()  # token masking for mlm and for the weak method's view
    c.mask.rate = 0.15  # share of the ordinary tokens that are chosen
    c.mask.all_captions = True  # the other losses see the masked captions too

    c.augment = ConfigDict()  # on the device, inside the step
    c.augment.flip = 0.5  # probability of a horizontal flip
    c.augment.pad = 10  # zero padding before the random crop, in pixels
    c.augment.erase = 0.5  # probability of random erasing

    c.optimizer = ConfigDict()  # Adam with coupled weight decay
    c.optimizer.lr = 1e-5  # peak of the schedule
    c.optimizer.b1 = 0.9  # decay of the gradients' mean
    c.optimizer.b2 = 0.999  # decay of their squares' mean
    c.optimizer.eps = 1e-3  # large on purpose: it affects the effective step size
    c.optimizer.weight_decay = 4e-5  # added to the gradient
    c.optimizer.groups = (
        "uniform"  # uniform | irra (see fmfa_jax/training/optimizer.py)
    )
    c.optimizer.head_factor = 5.0  # irra groups: of lr, interaction encoder and heads
    c.optimizer.bias_factor = 2.0  # irra groups: of lr, biases, which do not decay
    c.optimizer.clip_norm = 0.0  # 0: gradients are not clipped

    c.schedule = ConfigDict()  # linear warm-up, then cosine
    c.schedule.warmup_epochs = 5.0  # length of the warm-up
    c.schedule.warmup_factor = 0.1  # fraction of lr in the first epoch
    c.schedule.end_factor = 0.0  # fraction of lr at the end of the cosine
    c.schedule.every = "epoch"  # epoch: constant within one, as in the original | step


def _run(c: ConfigDict) -> None:
    c.train = ConfigDict()
    c.train.batch_size = 64  # over all devices of all hosts
    c.train.chunks = 1  # parts of a batch encoded in turn: less memory, the same loss
    c.train.epochs = 60  # passes over the training pairs
    c.train.stop_step = 0  # > 0: stop there, schedule unchanged (the run can resume)
    c.train.max_skipped = 10  # steps in a row that are not finite: more end the run

    c.eval = ConfigDict()
    c.eval.every_epochs = 1  # 0: only at the end
    c.eval.batch_size = 256  # pictures, or captions, encoded at once
    c.eval.split = "auto"  # selects the best: val | test | auto (val if there is one,
    # then test, if there is one) | none (nothing is measured)
    c.eval.pictures = 8  # ranking pictures drawn by the final evaluation

    c.checkpoint = ConfigDict()
    c.checkpoint.every_epochs = 1  # where every_steps is 0; 0: only at the end
    c.checkpoint.every_steps = 0  # 0: only every_epochs counts
    c.checkpoint.keep = 2  # training states; with 1, a damaged one has no fallback
    c.checkpoint.max_failed = 2  # saves in a row that a full disk may refuse

    c.log = ConfigDict()
    c.log.every_steps = 50  # steps from one line of the log to the next
    c.log.tensorboard = True  # write TensorBoard events, too

    # Trackers get scalars, config and results, too, if their package is installed.
    # Where they write to, their own variables say: WANDB_MODE, MLFLOW_TRACKING_URI, ...
    c.log.wandb = ""  # project of Weights & Biases; "": none
    c.log.mlflow = ""  # experiment of MLflow; "": none

    c.mesh = ConfigDict()  # over all devices of all hosts
    c.mesh.fsdp = 1  # devices that share one copy of the parameters

    c.run = ConfigDict()
    c.run.watchdog_seconds = 1800  # end a run that finishes no step for so long, the
    # time to compile left out; 0: wait for ever
    c.run.compilation_cache = "auto"  # compiled programs: auto (run's folder) | a
    # folder that several runs share | "" (not kept)
    c.run.deterministic = False  # True: equal bits on GPUs, too, at some cost


PRESETS = ("official", "paper", "repaired", "plus", "tal", "irra", "clip")
PRESETS += ("weak", "weak-paper", "weak-plus", "rde", "rde-batch")

# Presets that are a choice of losses, each of weight 1, with rates, groups and views of
# IRRA's code (arXiv 2303.12501): what FMFA is compared with, and ours in CLIP's width.
CHOICES = {"irra": ("sdm", "id", "mlm"), "clip": ("itc",), "tal": ("tal", "id")}


def with_preset(
    config: ConfigDict, preset: str, *, paper_alpha: float = ALPHA["paper"]
) -> ConfigDict:
    """Turn `config`, which is `official`, into the requested preset.

    Args:
        config: Config made by `base()`.
        preset: official (what the released code computes), paper (the published
            formulas), repaired (all of FMFA's losses, the defects of both fixed) or
            plus and tal (ours, what the ablation in docs/results.md left: RDE's triplet
            alignment with an identity loss, with its token selection and without);
            irra and clip (what FMFA is compared with: IRRA, and CLIP fine-tuned with
            ITC); weak, weak-paper and weak-plus for the method
            that needs no identity labels; rde (as published) and rde-batch (as released
            since, for clean captions).
        paper_alpha: The paper's strength of A-SDM, which depends on the data set.

    Raises:
        ValueError: If the preset is unknown.
    """
    if preset not in PRESETS:
        raise ValueError(f"wanted a preset among {PRESETS}, got {preset!r}")
    if preset.startswith("weak"):
        _make_weak(config, preset)
    if preset.startswith("rde") or preset == "plus":
        _make_rde(config, preset)
    if preset == "paper":
        config.loss.a_sdm_weight = "paper"
        config.loss.a_sdm_alpha = paper_alpha
        config.optimizer.groups = "irra"
    if preset == "repaired":
        config.loss.a_sdm_weight = "plus"
        config.loss.a_sdm_alpha = ALPHA["plus"]
        config.loss.efa_rule = "plus"
        config.loss.mlm_rule = "plus"
        config.optimizer.groups = "irra"
    if preset in CHOICES:
        for loss in config.losses:
            config.losses[loss] = float(loss in CHOICES[preset])
        config.optimizer.groups = "irra"
    if preset.endswith("plus") or preset in ("repaired", "tal", "clip", "rde"):
        # Here no loss uses padding, so it need not be computed.
        length = config.model.context_length
        config.data.caption_buckets = tuple(n for n in (32, 48, 64) if n < length)
    config.name = f"{config.name}-{preset}"
    return config


def _make_weak(config: ConfigDict, preset: str) -> None:
    """Select the dual-granularity method: arXiv 2507.06744 and its official code."""
    config.method = "weak"
    config.losses = ConfigDict(
        {"itc": 1.0, "local": 1.0, "global": 1.0, "consistency": 1.0}
    )
    config.mask.rate = 0.5
    config.train.epochs = 40
    # Biases learn twice as fast and do not decay; there are no heads to accelerate.
    config.optimizer.groups = "irra"
    if preset == "weak-paper":
        config.weak.itc_reduction = "sum"
        config.weak.rows = "batch"
    if preset == "weak-plus":
        config.weak.exclude = "self"
        config.weak.targets = "union"
        config.weak.same_image = "linked"


def _make_rde(config: ConfigDict, preset: str) -> None:
    """Select RDE: CVPR 2024 and its official code."""
    config.method = "rde"
    config.losses = ConfigDict({"bge": 1.0, "tse": 1.0, "id": 0.0})
    # Biases learn twice as fast and do not decay; TSE's head has a rate of its own.
    config.optimizer.groups = "irra"
    if preset == "rde-batch":
        config.rde.batch_norm = "batch"
    if preset == "plus":
        config.rde.division = "none"
        config.losses.id = 1.0
