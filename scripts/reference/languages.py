"""Word lists of nine natural languages: what gives the vocabulary entries that Python code never uses.

A real tokenizer spends much of its vocabulary on text a code model does not need; ours does so on purpose.
"""

from __future__ import annotations

import random

WORDS = {
    "de": """der die das und nicht aber immer wieder heute gestern morgen Abend Nacht Fenster Straße Wasser Haus
        Kinder Mutter Vater Schwester Bruder Freund Arbeit Schule Bahnhof Flughafen Zeitung Frühstück Mittagessen
        schreiben sprechen verstehen kaufen schlafen laufen fahren fliegen trinken glauben wünschen schön klein
        groß neu alt schnell langsam zwischen während vielleicht eigentlich natürlich Wissenschaft Gesellschaft
        Geschichte Entwicklung Wirtschaft Freiheit Gesundheit Möglichkeit Verantwortung Schmetterling Kartoffel
        Zwiebel Apfelkuchen Brücke Wald Berg Fluss Himmel Sonne Mond Stern Regen Schnee Winter Frühling Herbst""",
    "fr": """le la les une des mais toujours encore aujourd'hui hier demain soir nuit fenêtre rue eau maison enfants
        mère père sœur frère ami travail école gare aéroport journal déjeuner écrire parler comprendre acheter
        dormir courir voyager voler boire croire souhaiter beau petit grand nouveau vieux vite lentement pendant
        peut-être vraiment naturellement science société histoire développement économie liberté santé
        possibilité responsabilité papillon pomme oignon gâteau pont forêt montagne rivière ciel soleil lune
        étoile pluie neige hiver printemps automne chaussure cheveux oiseau heureux quelquefois beaucoup""",
    "es": """el los las pero siempre todavía hoy ayer mañana tarde noche ventana calle agua casa niños madre padre
        hermana hermano amigo trabajo escuela estación aeropuerto periódico desayuno escribir hablar comprender
        comprar dormir correr viajar volar beber creer desear hermoso pequeño grande nuevo viejo rápido despacio
        durante quizás realmente naturalmente ciencia sociedad historia desarrollo economía libertad salud
        posibilidad responsabilidad mariposa manzana cebolla pastel puente bosque montaña río cielo luna estrella
        lluvia nieve invierno primavera otoño zapato cabello pájaro feliz algunas muchas izquierda derecha""",
    "pt": """não mas sempre ainda hoje ontem amanhã tarde noite janela rua água crianças mãe pai irmã irmão amigo
        trabalho escola estação aeroporto jornal café escrever falar compreender comprar dormir correr viajar
        voar beber acreditar desejar bonito pequeno grande novo velho rápido devagar durante talvez realmente
        naturalmente ciência sociedade história desenvolvimento economia liberdade saúde possibilidade
        responsabilidade borboleta maçã cebola bolo ponte floresta montanha rio céu lua estrela chuva neve
        inverno primavera outono sapato cabelo pássaro feliz algumas muitas esquerda direita coração""",
    "ru": """и не но всегда снова сегодня вчера завтра вечер ночь окно улица вода дом дети мать отец сестра брат
        друг работа школа вокзал аэропорт газета завтрак писать говорить понимать купить спать бежать ехать
        летать пить верить желать красивый маленький большой новый старый быстро медленно между возможно
        конечно наука общество история развитие экономика свобода здоровье возможность ответственность бабочка
        яблоко лук пирог мост лес гора река небо солнце луна звезда дождь снег зима весна осень птица счастье
        иногда много человек время город страна жизнь вопрос место слово сторона сердце""",
    "zh": """我们 他们 今天 昨天 明天 晚上 窗户 街道 水 房子 孩子 母亲 父亲 姐姐 兄弟 朋友 工作 学校 车站 机场 报纸 早饭
        写字 说话 理解 买 睡觉 跑步 旅行 飞 喝茶 相信 希望 美丽 小 大 新 旧 快 慢 之间 可能 当然 科学 社会 历史 发展
        经济 自由 健康 责任 蝴蝶 苹果 洋葱 蛋糕 桥 森林 山 河 天空 太阳 月亮 星星 雨 雪 冬天 春天 秋天 鸟 幸福 有时
        很多 人民 时间 城市 国家 生活 问题 地方 语言 心 电脑 手机 音乐 电影""",
    "ja": """私たち 今日 昨日 明日 夜 窓 通り 水 家 子供 母 父 姉 兄弟 友達 仕事 学校 駅 空港 新聞 朝ご飯 書く 話す
        分かる 買う 眠る 走る 旅行する 飛ぶ 飲む 信じる 願う 美しい 小さい 大きい 新しい 古い 速い ゆっくり
        たぶん もちろん 科学 社会 歴史 発展 経済 自由 健康 可能性 責任 ちょうちょ りんご たまねぎ ケーキ 橋 森 山 川
        空 太陽 月 星 雨 雪 冬 春 秋 鳥 幸せ ときどき たくさん ありがとう こんにちは さようなら コンピュータ""",
    "ar": """نحن اليوم أمس غدا المساء الليل نافذة شارع ماء بيت أطفال أم أب أخت أخ صديق عمل مدرسة محطة مطار جريدة
        فطور يكتب يتكلم يفهم يشتري ينام يجري يسافر يطير يشرب يؤمن جميل صغير كبير جديد قديم سريع بطيء بين ربما
        طبعا علم مجتمع تاريخ تطور اقتصاد حرية صحة إمكانية مسؤولية فراشة تفاحة بصل كعكة جسر غابة جبل نهر سماء شمس
        قمر نجمة مطر ثلج شتاء ربيع خريف طائر سعيد أحيانا كثير إنسان وقت مدينة بلد حياة سؤال مكان كلمة قلب""",
    "hi": """हम आज कल शाम रात खिड़की सड़क पानी घर बच्चे माता पिता बहन भाई दोस्त काम विद्यालय स्टेशन हवाई अखबार नाश्ता
        लिखना बोलना समझना खरीदना सोना दौड़ना यात्रा उड़ना पीना विश्वास इच्छा सुंदर छोटा बड़ा नया पुराना तेज धीरे
        शायद अवश्य विज्ञान समाज इतिहास विकास अर्थव्यवस्था स्वतंत्रता स्वास्थ्य संभावना जिम्मेदारी तितली सेब प्याज
        पुल जंगल पहाड़ नदी आकाश सूरज चाँद तारा बारिश बर्फ सर्दी वसंत पक्षी खुश कभी बहुत मनुष्य समय शहर देश जीवन""",
}
JOINED = frozenset(("zh", "ja"))  # written without spaces
FORMS = ("{0} {1} {2}.", "{0}, {1} {2} {3}!", "{0} {1}: {2} {3} {4}.", "{0} {1} {2} {3}?", "{0} {1} {2} {3} {4} {5}.")


def sentences(count: int, rng: random.Random) -> list[str]:
    """`count` made-up sentences, the languages taking turns."""
    lexicons = {name: words.split() for name, words in WORDS.items()}
    found = []
    for i in range(count):
        name = list(lexicons)[i % len(lexicons)]
        text = rng.choice(FORMS).format(*rng.choices(lexicons[name], k=6))
        found.append(text.replace(" ", "") if name in JOINED else text)
    return found
