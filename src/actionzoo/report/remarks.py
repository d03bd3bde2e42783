"""Remarks of params.yaml on published rows, in the languages of the tables."""

CHINESE = {
    "Its shipped schedule kept the steps of another policy and could not run; here it is the cosine that was meant.": (
        "随附的配置保留了另一种学习率策略的步数，无法运行；此处为其本意的余弦策略。"
    ),
    "It freezes BN with no weights to start from.": "它在没有初始权重的情况下冻结 BN。",
    "The numbers are those of infer_ckpt, imported from VMZ.": "公布数值属于从 VMZ 导入的 infer_ckpt。",
    "The second numbers are those of infer_ckpt, imported from VMZ.": "第二个公布数值属于从 VMZ 导入的 infer_ckpt。",
    "The row that trains its BN; later tables measured another network in this place, with frozen BN.": (
        "此行训练 BN；后来的表格在此处给出的是另一个冻结 BN 的网络。"
    ),
    "The table's 74.34 / 91.58 was corrected to 73.95 / 91.50 later, for the same checkpoint.": (
        "表中的 74.34 / 91.58 后来更正为 73.95 / 91.50，权重不变。"
    ),
    "A later table has another run in this place, on 8x2 GPUs, with 76.0 / 92.54; here stands the one of the published "
    "page.": "后来的表格在此处是另一次训练（8x2 块 GPU，76.0 / 92.54）；此处为公布页面上的那一次。",
    "The checkpoint was trained with fusion_kernel 5 and was withdrawn later; the recipe has the 7 that was meant.": (
        "该权重以 fusion_kernel 5 训练，后来被撤回；配方中是其本意的 7。"
    ),
}


def remark(note: str, language: str) -> str:
    """The note in a language of the tables, en or zh; a sentence without a translation stays in English."""
    if language == "zh":
        for english, chinese in CHINESE.items():
            note = note.replace(f"{english} ", chinese).replace(english, chinese)
    return note
