"""Names of models that cannot be loaded, by what this project lacks. The first pattern that matches decides.

Rotary positions and others that concern plain Vision Transformers are in architectures.py.
"""

_STAGES = "stages of several resolutions"
_CONVOLUTIONS = "convolutional networks"
_RMS = "RMSNorm and layers without biases"


def _table(words: dict[str, str]) -> dict[str, str]:
    """{pattern: reason} of {reason: patterns}."""
    return {"|".join(patterns.split()): reason for reason, patterns in words.items()}


# timm's architectures, without the tag after the dot.
TIMM = _table(
    {
        _RMS: "aimv2_.* test_vit4",
        "rotary positions and RMSNorm": "(deepseek|gemma4|qwen3)_vit_.*",
        "blocks for the cls token alone and attention that mixes heads": "cait_.*",
        "gates between attention and positions": "convit_.*",
        "two branches for patches of different sizes": "crossvit_.*",
        "transformers within patches": "tnt_.*",
        "layers without attention": "(mixer|gmixer|gmlp|resmlp)_.*",
        "patch embeddings of several convolutions": r"vit_.*_mci_.* vit_.*_r_s\d+_.*",
        _STAGES: (
            "(hiera|hieradet|sam2|swin|mvit|pvt|twins|nest|davit|gcvit|focalnet|pit|coat|max+vit|levit).* "
            "(tiny_vit|nextvit|vitamin|visformer|xcit|efficientvi|efficientformer|mobilevit|repvit|shvit).* "
            "(edgenext|(pool|ca|con[vf]|meta|i)former|fastvit|swiftformer|csatv2|lowformer|volo).* "
            "(mambaout|cpubone|sequencer|test_maxvit).*"
        ),
        _CONVOLUTIONS: (
            ".*(resne|regnet|convnext|efficientnet|mobilenet|densenet|vgg|botnet|halonet|inception).*"
        ),
    }
)

# transformers' model_type.
TRANSFORMERS = _table(
    {
        "patches of images of any aspect (NaFlex)": "siglip2(_vision_model|_text_model)?",
        _RMS: "aimv2(_vision_model|_text_model)?",
        "several cls tokens": "pixio",
        "models of timm inside those of transformers": "timm_wrapper timm_backbone",
        "relative positions and attention within windows": "sam(_hq)?(_.*)? slanext.*",
        _STAGES: (
            "swin.* (donut|maskformer)-swin hiera pvt(_v2)? segformer glpn cvt dinat focalnet levit "
            "mobilevit.* poolformer swiftformer (sam2|edgetam)(_.*)?"
        ),
        _CONVOLUTIONS: (
            "(dinov3_)?convnext.* resnet regnet bit efficientnet mobilenet_v.* hgnet_v2 textnet uvdoc.* "
            "slanet pp_.* rt_detr_resnet"
        ),
        "models of videos": "timesformer videomae vivit vjepa2 videoprism.* xclip video_.* tvp",
        "models that end in a detector, a segmenter or a decoder": (
            ".*detr.* .*grounding-dino yolos (.*_)?dpt .*depth.* upernet vitmatte chmv2 seggpt deimv2 "
            "(mask2|mask|one)former eomt.* omdet.* vitpose.* table-transformer super.* lightglue nougat "
            "trocr efficientloftr mgp-str vision-encoder-decoder"
        ),
        "models of images and texts of this kind": (
            "(align|altclip|blip|blip-2|chinese_clip|clipseg|groupvit|owlvit|owlv2|tipsv2|flava|git)(_.*)? "
            "vilt imagegpt perceiver layout.* udop bridgetower vision-text-dual-encoder"
        ),
        "image encoders within a language model": (
            ".*(llava|idefics|gemma|smolvlm|internvl|ovis|florence|kosmos|janus|molmo|deepseek|mistral).* "
            ".*(glm|phi4|minicpm|granite|ernie|cohere|aya|aria|emu|fuyu|chameleon|mllama|lfm|nemotron).* "
            ".*(perception_lm|got_ocr2|colpali|hunyuan|kimi|step3|exaone|apertus|omni|vl|ocr|instructblip).*"
        ),
    }
)

# What to use instead, by transformers' model_type.
_FIXED = "SigLIP 2 for images of one size, whose config.json says siglip, can be loaded"
_OWN = "give the folder that timm writes, whose config.json has 'architecture'"
INSTEAD = {"siglip2": _FIXED, "siglip2_vision_model": _FIXED, "timm_wrapper": _OWN, "timm_backbone": _OWN}

# Image towers that OpenCLIP's config describes.
COCA = "a text decoder beside both towers and attention pooling of its kind"
RESNET = _CONVOLUTIONS
