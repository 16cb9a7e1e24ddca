"""A song written for the tests: structure tags, four languages, numbers, blank lines."""

SONG = """\
[intro]
(oh, oh, oh)

[verse]
Paper boats are drifting down the gutter after rain
You left your laughter hanging on the kitchen door
We counted 12 red lanterns and 100 silver stars
"Stay," she said, and every clock forgot

[Verse 2]
Die Nacht ist jung und wir tanzen durch den Regen
Sag mir nicht, dass morgen alles anders wird
Wir haben nur noch 3 Minuten bis zum Licht

[pre-chorus]
El viento trae canciones de otro mar
Y la luna no quiere decir tu nombre

[chorus]
我们在夏天的雨里跳舞
月亮还记得我们的名字，100年也不会忘记
사랑해, 너를 사랑해
君の笑い声がまだドアに残る

[bridge]
Мы танцевали босиком под дождём
Ветер приносит песни с моря

[outro]
I'll be the ember if you'll be the breeze
Don't you dare forget the way the river sang

[end]
"""
