"""The words of the generated tasks, English and Chinese."""


def _split(english: str, chinese: str) -> dict[str, tuple[str, ...]]:
    """Lists with commas between the words."""
    return {"en": tuple(english.split(", ")), "zh": tuple(chinese.split("、"))}


PEOPLE = _split(
    "Alma, Boris, Clara, Dario, Edith, Felix, Greta, Hugo, Irene, Jonas, Lydia, Marco",
    "小芳、大伟、阿明、李雷、王梅、陈静、赵刚、孙丽、周强、吴敏、郑洁、刘洋",
)
PLACES = _split(
    "cellar, library, orchard, stable, kitchen, attic, harbour, market, chapel, workshop, bakery, cabin",
    "厨房、书房、花园、车站、码头、市场、教室、仓库、阁楼、药店、邮局、茶馆",
)
THINGS = _split(
    "lantern, compass, teapot, violin, umbrella, hammer, basket, ticket, pillow, ladder",
    "灯笼、雨伞、茶壶、铁锤、篮子、地图、枕头、梯子、怀表、剪刀",
)
# "Alma walked to the cellar."
MOVES = _split(
    "walked to, hurried to, returned to, strolled to",
    "走到了、跑到了、回到了、来到了",
)
# "Alma picked up the lantern."
TAKES = _split(
    "picked up, collected, took hold of",
    "拿起了、捡起了、取走了",
)
DROPS = _split(
    "put down, left behind, set aside",
    "放下了、丢下了、搁下了",
)

ADJECTIVES = _split(
    "quiet, golden, narrow, sleepy, wooden, bitter, gentle, hollow, silver, frozen, clever, dusty, "
    "famous, modern, purple, tender",
    "安静的、金色的、古老的、聪明的、遥远的、温柔的、寒冷的、明亮的、勇敢的、孤独的、柔软的、神秘的、"
    "疲惫的、快乐的、沉重的、洁白的",
)
NOUNS = _split(
    "rabbit, sailor, mirror, garden, farmer, window, doctor, bridge, painter, candle, teacher, pigeon, "
    "carpet, kettle, tiger, tower",
    "兔子、水手、镜子、农夫、窗户、医生、石桥、画家、蜡烛、老师、鸽子、地毯、水壶、老虎、高塔、帆船",
)
VERBS = _split(
    "follows, admires, remembers, carries, touches, forgets, watches, protects, describes, imagines, "
    "replaces, surprises",
    "跟随、欣赏、记得、搬走、触摸、忘记、看着、保护、描述、想象、取代、惊动",
)
ADVERBS = _split(
    "again, slowly, every morning, without a word, today, near the river, in spring, at midnight",
    "再次、慢慢地、每天早上、一声不响地、今天、在河边、在春天、在半夜",
)

# Sentences that have nothing to do with what is asked.
FILLER = {
    "en": (
        "The river bends twice before it meets the sea.",
        "A kettle hums while the bread cools on the sill.",
        "Clouds drift over the hills and cast no shadow for long.",
        "Somebody painted the fence green and then white.",
        "The old clock strikes the hour a little late.",
        "Leaves gather at the foot of the stone wall.",
        "Two boats wait for the tide to turn.",
        "The road is dry, and the dust hangs in the air.",
        "A lamp burns in the window across the yard.",
        "Snow has covered the path to the mill.",
        "The orchestra tunes up, and then nobody plays.",
        "Nothing on this street has changed since autumn.",
    ),
    "zh": (
        "河水拐了两个弯才流进大海。",
        "炉子上的水开了，面包还放在窗台上。",
        "云从山顶飘过，影子一会儿就散了。",
        "有人把篱笆刷成绿色，后来又刷成白色。",
        "旧钟敲响的时候总是慢一点。",
        "落叶堆在石墙的脚下。",
        "两只小船在等潮水回头。",
        "路面很干，空气里都是灰尘。",
        "院子对面的窗里点着一盏灯。",
        "大雪盖住了去磨坊的小路。",
        "乐队调好了音，却没有人演奏。",
        "入秋以来，这条街什么也没有变。",
    ),
}

# Of Chinese answers, for the space of a guesser who knows which characters the sentences are made of.
IDEOGRAPHS = "".join(
    sorted(
        {letter for words in (ADJECTIVES, NOUNS, VERBS, ADVERBS) for word in words["zh"] for letter in word}
    )
)
