"""The texts of the zoo's tables, in English and Chinese."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from ..accuracy import PUBLISHED_CLIPS, Reason
from ..kinetics.manifest import STATES
from .results import WarningKey

Language = Literal["en", "zh"]


@dataclass(frozen=True, kw_only=True)
class Texts:
    """Texts of one language; names in braces are filled in by the tables."""

    title: str
    warnings: Mapping[WarningKey, str]
    summary: str
    columns: tuple[str, ...]
    short_side: str
    not_run: str
    machine_was_busy: str
    ours: str
    clips_of_listed: str
    end_to_end: str
    test_memory: str
    process_memory: str
    marks: Mapping[Reason, str]
    notes_title: str
    notes: tuple[str, ...]
    other_versions: str
    trained_with: str
    files_title: str
    files: Mapping[str, str]
    """Kind of a file -> its link's text."""
    remarks_title: str
    changed_title: str
    clips_title: str
    clip_columns: tuple[str, ...]


TEXTS: Mapping[Language, Texts] = {
    "en": Texts(
        title="Model zoo on {dataset}",
        warnings={
            "not_kinetics": (
                "This is not Kinetics-400. Accuracies on `{dataset}` show whether the pipeline works; they say nothing "
                "about the published numbers beside them."
            ),
            "nothing_ran": "Nothing has run yet: none of the {models} models has a number of ours.",
            "overridden": (
                "{count} of {models} models ran with a changed recipe (see Changed recipes). Their numbers are not "
                "results of the recipes they are named after."
            ),
            "overridden_some": (
                "{count} of {models} models ran with a changed recipe (see Changed recipes); not run yet: {waiting}. "
                "Numbers by a changed recipe are not results of the recipe they are named after."
            ),
            "partial": (
                "Evaluated on fewer than 90 % of the {clips} published validation clips: {count} of {models} models."
            ),
            "busy": (
                "The machine was busy while the speed of {count} of {models} models was measured (see their cells). "
                "These speeds may be far off; measure again when nothing else is running."
            ),
        },
        summary="{count} of {models} models evaluated.",
        columns=(
            *("config", "resolution", "GPUs", "backbone", "pretrain"),
            *("top1 published", "top1 ours (95 %)", "top5 published", "top5 ours (95 %)"),
            *("inference time (video/s) published", "inference time (video/s) ours"),
            *("gpu_mem (M) published", "gpu_mem (M) ours"),
            *("ckpt", "log", "json"),
        ),
        short_side="short side {side}",
        not_run="not run yet",
        machine_was_busy="machine was busy",
        ours="ours",
        clips_of_listed="{clips} of {listed} clips",
        end_to_end="{speed} with decoding",
        test_memory="{memory} in evaluation",
        process_memory="of a process on a CPU",
        marks={
            "data": "measured on {dataset}, not on Kinetics-400",
            "recipe": "by a changed recipe, see Changed recipes",
            "part": "on fewer than 90 % of the published validation clips",
        },
        notes_title="How to read it",
        notes=(
            "GPUs: 8x4 means 8 GPUs on each of 4 machines, as used for the published weights; x: not stated.",
            "A second published number belongs to other weights, or corrects the first; see the model's remark.",
            "Ours: accuracy over the evaluated clips. The interval (Wilson, 95 %) follows from their number alone; "
            "another seed moves the result as well.",
            "Inference time: one device, one video at a time with all its views, the network alone, as published; "
            "beside it with decoding, sampling of views and transfer. Both are medians of alternating measurements, "
            "with quartiles in brackets.",
            "gpu_mem: during training, on one GPU with the recipe's videos_per_gpu, as published; beside it during "
            "evaluation. Without a GPU, the resident memory of a process.",
            f"The published validation set has {PUBLISHED_CLIPS:,} videos. Our links lead to the best checkpoint; in "
            "zoo.html also to the logs of its training as text and as JSON.",
        ),
        other_versions=(
            "Trained with other versions than this report was made with ({now}): {models}. DVC does not see that; "
            "dvc repro -f train@MODEL trains anew."
        ),
        trained_with="{model} with {versions}",
        files_title="Files",
        files={
            "result": "scores of every clip",
            "benchmark": "speed and memory",
            "curves": "training curve",
            "recipe": "recipe as used",
        },
        remarks_title="Remarks",
        changed_title="Changed recipes",
        clips_title="Clips",
        clip_columns=("data", "split", "listed", "usable", *STATES),
    ),
    "zh": Texts(
        title="{dataset} 上的模型库",
        warnings={
            "not_kinetics": (
                "这不是 Kinetics-400。`{dataset}` 上的准确率只说明流程能否跑通，与旁边的公布数值没有可比性。"
            ),
            "nothing_ran": "尚未运行任何模型：{models} 个模型都还没有本项目的数值。",
            "overridden": (
                "{models} 个模型中有 {count} 个使用修改过的配方运行（见下文），其数值不代表同名配方的结果。"
            ),
            "overridden_some": (
                "{models} 个模型中有 {count} 个使用修改过的配方运行（见下文），{waiting} 个尚未运行；"
                "使用修改过的配方得到的数值不代表同名配方的结果。"
            ),
            "partial": "{models} 个模型中有 {count} 个的评测所用视频不足公布验证集（{clips} 个）的 90 %。",
            "busy": (
                "{models} 个模型中有 {count} 个在测速时机器正忙（见相应单元格），其速度可能偏差很大；"
                "请在机器空闲时重新测量。"
            ),
        },
        summary="{models} 个模型中已评测 {count} 个。",
        columns=(
            *("配置文件", "分辨率", "GPU 数量", "主干网络", "预训练"),
            *("top1 准确率（公布）", "top1 准确率（本项目，95 %）"),
            *("top5 准确率（公布）", "top5 准确率（本项目，95 %）"),
            *("推理时间 (video/s)（公布）", "推理时间 (video/s)（本项目）"),
            *("GPU 显存占用 (M)（公布）", "GPU 显存占用 (M)（本项目）"),
            *("ckpt", "log", "json"),
        ),
        short_side="短边 {side}",
        not_run="尚未运行",
        machine_was_busy="测速时机器正忙",
        ours="本项目",
        clips_of_listed="{listed} 个视频中的 {clips} 个",
        end_to_end="含解码 {speed}",
        test_memory="评测时 {memory}",
        process_memory="CPU 进程内存",
        marks={
            "data": "在 {dataset} 上测得，而非 Kinetics-400",
            "recipe": "使用了修改过的配方，见“修改过的配方”",
            "part": "所用视频不足公布验证集的 90 %",
        },
        notes_title="说明",
        notes=(
            "GPU 数量：8x4 表示 4 台机器、每台 8 块 GPU，与公布的权重一致；x 表示未注明。",
            "第二个公布数值属于另一份权重，或是对第一个数值的更正；见该模型的备注。",
            "本项目：在实际评测的视频上计算的准确率。Wilson 区间（95 %）仅由视频数量决定；更换随机种子同样会改变结果。",
            "推理时间：单个设备、逐个视频、包含其全部视图，仅计网络部分，与公布值的测法相同；旁边是含解码、取帧与传输的数值。"
            "两者交替测量，均取中位数，括号内为四分位数。",
            "GPU 显存占用：单块 GPU、按配方的 videos_per_gpu 训练时的占用，与公布值的测法相同；旁边是评测时的占用。"
            "没有 GPU 时为进程的常驻内存。",
            f"公布的验证集包含 {PUBLISHED_CLIPS:,} 个视频。"
            "本项目的链接指向最佳权重；zoo.html 中还链接其训练的文本日志与 JSON 日志。",
        ),
        other_versions=(
            "训练所用版本与生成本报告的版本（{now}）不同：{models}。DVC 不会察觉；dvc repro -f train@MODEL 可重新训练。"
        ),
        trained_with="{model}（{versions}）",
        files_title="文件",
        files={
            "result": "每个视频的得分",
            "benchmark": "速度与内存",
            "curves": "训练曲线",
            "recipe": "实际使用的配方",
        },
        remarks_title="备注",
        changed_title="修改过的配方",
        clips_title="视频片段",
        clip_columns=(
            *("数据", "划分", "标注", "可用"),
            *("正常", "已替换", "过短", "缺失", "损坏", "未标注"),
        ),
    ),
}
