"""The names that a released configuration may use. What is not here is refused, and named in the message."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

MONAI = {
    "monai.transforms": """
        Activations Activationsd AsDiscrete AsDiscreted BorderPad BorderPadd CastToType CastToTyped CenterSpatialCrop
        CenterSpatialCropd ClassesToIndices ClassesToIndicesd ClipIntensityPercentiles ClipIntensityPercentilesd
        Compose ConcatItemsd CopyItemsd CropForeground CropForegroundd DeleteItemsd DivisiblePad DivisiblePadd
        EnsureChannelFirst EnsureChannelFirstd EnsureType EnsureTyped FgBgToIndices FgBgToIndicesd FillHoles
        FillHolesd Flip Flipd GaussianSmooth GaussianSmoothd HistogramNormalize HistogramNormalized Identity Identityd
        Invertd KeepLargestConnectedComponent KeepLargestConnectedComponentd LabelToMask LabelToMaskd LoadImage
        LoadImaged MapLabelValue MapLabelValued MaskIntensity MaskIntensityd MeanEnsembled NormalizeIntensity
        NormalizeIntensityd OneOf Orientation Orientationd Rand2DElasticd Rand3DElasticd RandAdjustContrast
        RandAdjustContrastd RandAffine RandAffined RandAxisFlipd RandBiasFieldd RandCoarseDropoutd
        RandCropByLabelClasses RandCropByLabelClassesd RandCropByPosNegLabel RandCropByPosNegLabeld RandFlip RandFlipd
        RandGaussianNoise RandGaussianNoised RandGaussianSharpend RandGaussianSmooth RandGaussianSmoothd
        RandGibbsNoised RandHistogramShiftd RandRicianNoised RandRotate RandRotate90 RandRotate90d RandRotated
        RandScaleCropd RandScaleIntensity RandScaleIntensityFixedMeand RandScaleIntensityd RandShiftIntensity
        RandShiftIntensityd RandSimulateLowResolution RandSimulateLowResolutiond RandSpatialCrop
        RandSpatialCropSamplesd RandSpatialCropd RandStdShiftIntensityd RandWeightedCropd RandZoom RandZoomd
        RandomOrder RemoveSmallObjects RemoveSmallObjectsd ResampleToMatch ResampleToMatchd Resize ResizeWithPadOrCrop
        ResizeWithPadOrCropd Resized Rotate90d Rotated SaveImage SaveImaged ScaleIntensity ScaleIntensityRange
        ScaleIntensityRangePercentiles ScaleIntensityRangePercentilesd ScaleIntensityRanged ScaleIntensityd
        SelectItemsd ShiftIntensityd SomeOf Spacing Spacingd SpatialCropd SpatialPad SpatialPadd SqueezeDim
        SqueezeDimd ThresholdIntensityd ToDeviced ToTensor ToTensord Transposed VoteEnsembled Zoomd""",
    "monai.data": """
        CacheDataset DataLoader Dataset DistributedSampler SmartCacheDataset ThreadDataLoader""",
    "monai.engines": """
        EnsembleEvaluator PrepareBatchDefault PrepareBatchExtraInput SupervisedEvaluator SupervisedTrainer
        default_make_latent default_prepare_batch""",
    "monai.handlers": """
        ConfusionMatrix EarlyStopHandler GarbageCollector HausdorffDistance IgniteMetricHandler LrScheduleHandler
        MeanDice MeanIoUHandler StatsHandler SurfaceDistance TensorBoardStatsHandler ValidationHandler from_engine""",
    "monai.inferers": "SimpleInferer SliceInferer SlidingWindowInferer SlidingWindowInfererAdapt",
    "monai.losses": """
        DeepSupervisionLoss DiceCELoss DiceFocalLoss DiceLoss FocalLoss GeneralizedDiceFocalLoss GeneralizedDiceLoss
        GeneralizedWassersteinDiceLoss HausdorffDTLoss MaskedDiceLoss TverskyLoss""",
    "monai.metrics": """
        ConfusionMatrixMetric DiceMetric GeneralizedDiceScore HausdorffDistanceMetric MeanIoU SurfaceDiceMetric
        SurfaceDistanceMetric""",
    "monai.networks.nets": """
        AttentionUnet BasicUNet BasicUNetPlusPlus BasicUnet DynUNet DynUnet HighResNet MedNeXt SegResNet SegResNetDS
        SwinUNETR UNETR UNet Unet VNet""",
    "monai.optimizers": "Novograd WarmupCosineSchedule",
    "monai.utils": "set_determinism",
}
OTHERS = {
    "ignite.handlers": "ProgressBar",
    "np": "float32 float64 int16 int32 uint8",
    "numpy": "float32 float64 int16 int32 uint8",
    "scripts": "BUNDLE_ROOT",
    "torch": "bfloat16 bool device float16 float32 float64 int32 int64 long tensor uint8",
    "torch.nn": "BCEWithLogitsLoss CrossEntropyLoss GELU Identity InstanceNorm2d InstanceNorm3d LeakyReLU ReLU",
    "torch.optim": "Adam AdamW NAdam RAdam RMSprop SGD",
    "torch.optim.lr_scheduler": """
        CosineAnnealingLR ExponentialLR MultiStepLR OneCycleLR PolynomialLR ReduceLROnPlateau StepLR""",
    "torch.utils.data": "RandomSampler",
}
TARGETS = {f"{module}.{name}" for module, names in MONAI.items() for name in names.split()}
SHORT = {name for names in MONAI.values() for name in names.split()}  # MONAI finds these without their module
# Expressions take few names of MONAI: some of its classes import what they are given as text, and only the keys of a
# component can be judged for that
NAMES = {f"{module}.{name}" for module, names in OTHERS.items() for name in names.split()} | {
    "monai.engines.default_prepare_batch",
    "monai.handlers.from_engine",
    "monai.utils.set_determinism",
}
OURS = """
    clinical components datalists distributed evaluation exported fine_tuning handlers inferers losses metrics networks
    regions runs schedules slices spacing transforms"""
MODULES = set(OURS.split())  # of scripts: what a configuration builds from; not what prepares, reports or releases
CALLED = """
    clinical.ClinicalSchema.from_yaml datalists.evaluation_cases datalists.inference_cases datalists.part
    distributed.device distributed.follows distributed.once distributed.parallel distributed.processes distributed.rank
    distributed.share distributed.stop fine_tuning.keep_statistics handlers.loss_of networks.load_weights
    networks.upkern_checkpoint regions.segmentation_loss runs.amp_dtype runs.clinical_csv runs.default_device
    runs.fit_clinical runs.initialise runs.start slices.crop_size slices.network_patch slices.pixdim slices.rotations
    slices.zooms transforms.random_flips transforms.training_transform"""
FUNCTIONS = set(CALLED.split())  # of those modules: what our configurations call; others write what they are told to
BUILTINS = {"abs", "bool", "dict", "float", "int", "len", "list", "max", "min", "round", "str", "tuple"}
IMPORTS = {"ignite", "monai", "numpy", "scripts", "torch"}
ATTRIBUTES = {"groups", "module", "n_features", "type"}  # of what `@id` stands for
METHODS = {"eval", "parameters", "run", "to"}
LOADING = {"keys", "reader", "ensure_channel_first", "image_only", "dtype", "simple_keys", "allow_missing_keys"}
READERS = {"itkreader", "nibabelreader", "nrrdreader", "pilreader", "pydicomreader"}
WRITERS = {"itkwriter", "nibabelwriter", "pilwriter"}


class AllowList:
    """Says whether a dotted name may stand in a configuration.

    Args:
        scripts: the bundle's folder of code; its public classes and functions are looked up by reading, not importing.
        more: further names that the user vouches for.
    """

    def __init__(self, scripts: Path, more: tuple[str, ...] = ()) -> None:
        self.scripts = scripts
        self.more = frozenset(more)

    def __contains__(self, name: object) -> bool:
        """Whether an expression may use this dotted name."""
        if not isinstance(name, str):
            return False
        return name in NAMES or name in self.more or self._is_ours(name)

    def target(self, name: object) -> bool:
        """Whether ``_target_`` may have this value: a name as above, or MONAI's short form of one."""
        return isinstance(name, str) and (name in SHORT or name in TARGETS or name in self)

    def _is_ours(self, name: str) -> bool:
        """Whether the name is public in one of the modules that configurations use, and defined there."""
        first, *path = name.split(".")
        if first != "scripts" or len(path) < 2 or path[0] not in MODULES or any(p.startswith("_") for p in path):
            return False
        file, rest = self.scripts, path
        while rest and (file / rest[0]).is_dir():
            file, rest = file / rest[0], rest[1:]
        if rest and (file / f"{rest[0]}.py").is_file():
            file, rest = file / f"{rest[0]}.py", rest[1:]
        else:
            file = file / "__init__.py"
        if not rest or len(rest) > 2 or not file.is_file():
            return False
        defined = public_names(file, self.scripts)
        exists = rest[0] in defined and (len(rest) == 1 or rest[1] in defined[rest[0]])
        is_class = len(rest) == 1 and rest[0][0].isupper()
        return exists and (is_class or ".".join(path) in FUNCTIONS)


@cache
def public_names(file: Path, scripts: Path) -> dict[str, frozenset[str]]:
    """What a module defines: classes with their methods, functions, and what it takes over from its own package.

    Args:
        file: Python source, parsed and never run.
        scripts: the folder of the package.

    Returns:
        Name to the names of its methods.
    """
    found: dict[str, frozenset[str]] = {}
    try:
        body = ast.parse(file.read_bytes()).body
    except (SyntaxError, ValueError, RecursionError):
        return found
    for node in body:
        if isinstance(node, ast.ClassDef):
            found[node.name] = frozenset(n.name for n in node.body if isinstance(n, ast.FunctionDef))
        elif isinstance(node, ast.FunctionDef):
            found[node.name] = frozenset()
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = node.level == 1 or node.module.startswith("scripts.")
            base = file.parent if node.level == 1 else scripts
            source = base.joinpath(*node.module.removeprefix("scripts.").split(".")).with_suffix(".py")
            if inner and source.is_file():
                theirs = public_names(source, scripts)
                found |= {alias.name: theirs[alias.name] for alias in node.names if alias.name in theirs}
    return found
