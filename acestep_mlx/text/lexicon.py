"""What tells written languages apart when a line is too short for statistics: letters and small words."""

from __future__ import annotations

# Letters beyond a–z that a language writes itself. One from outside speaks against the language.
LETTERS = {
    "cs": "áčďéěíňóřšťúůýž",
    "de": "äöüß",
    "en": "é",
    "es": "áéíñóúü¿¡",
    "fr": "àâæçèéêëîïôùûüÿœ",
    "hu": "áéíóöúüőű",
    "it": "àèéìíîòóùú",
    "nl": "èéêëïöü",
    "pl": "óąćęłńśźż",
    "pt": "àáâãçéêíóôõú",
    "tr": "âçîöûüğışİ",
}

# The words that every text is full of, and those that songs are. A word may stand in several rows:
# it then counts for each of them a little.
WORDS = {
    "cs": """
        a aby ahoj ale ani asi až bez bude budem budeš budu by bych byl byla byli bylo být cesta cesty chceš
        chci co cítím den dlouho dnes dni dny do domů dál děkuji holka hvězdy i jak jako jdeme jdu je jeho
        jejich její jen ještě jsem jsi jsme jsou já k kam každý kde kdo když kluk kolem krásná krásný která
        který lidi lidé láska lásko láskou mezi mi miluji miluju mně moc moje možná my málo mám máme máš mého
        mě můj můžu na nad naše ne nebe nebo neboj nech není nic nikde nikdy noc nám nás náš něco někdy o od
        on ona oni oči po pod pojď pojďme pořád pro prosím protože proč pryč před při ráno s se si skrz slova
        slovo slunce slyším snad sny spolu srdce srdci stále svoboda svět svůj ta tady tak taky také tam ten
        teď to tobě toho tvoje tvůj ty tím tě u už v vaše velmi vidím voda vodu vy vím víš včera však všechno
        všude z za zase ze zpátky zpívej zítra zůstaň čas člověk řekni říkám štěstí že život žít
    """,
    "de": """
        aber alle allein alles als alt am an anders auf auge augen aus bei besser bin bis bist bitte da danke
        dann darf das dass dein deine dem den denn der des dich die diese dieser dieses dir doch dort du durch
        ein eine einem einen einer einfach er es euch euer freiheit für ganz gegen geh gehen geht gewesen gib
        glück große gut hab habe haben habt hallo halt hand hast hat heißt herz heute hier himmel hände hätte
        hören ich ihr ihre im immer in ist ja jede jeder jedes jetzt kann kannst kein keine kleine komm kommt
        können lass lassen leben liebe liebling mach machen macht mal man mehr mein meine mich mir mit muss
        musst müssen nach nacht nein nicht nichts nie noch nur ob oder ohne sag schlaf schon sehe sehen seid
        sein seine seit sich sie sind so sollen sollst sonne tag tanz träum träume tschüss und uns unser
        unsere unter viel vom von vor war waren warum was weg weil weiter weiß welt wenn wer wie wieder wieso
        will willst wir wird wo wollen wort worte wurde wäre würde zeit zu zum zur zurück zwischen über
    """,
    "en": """
        a about again ain't all alone always am an and any anything are around as at away back be because been
        before being better both boy bring burning but by can can't cause come could couldn't crazy dance day
        did didn't do doesn't don't down dream dreams each even ever every everybody everything eyes face feel
        find fire first for forever friend from get gets gimme girl go gone gonna good goodbye got had hand
        hands has have he he's heart heaven hello her here here's high him his hold home how i i'll i'm i've
        if in into is isn't it it's just keep kiss knew know last leave let let's life light like little
        lonely long lost love made make many me mine money more morning most much my myself never new night no
        nobody not nothing now of off old on one only or our ours out over own please rain right river run
        running said same saw say see seen she she's should sing sky so some somebody something sorry stay
        still stop street such sun take talk tears tell than thanks that that's the their them then there
        there's these they they're thing things this those thought three through time to together told
        tomorrow tonight too true try turn two under until up us very wait walk wanna want was wasn't way we
        we're went were what what's when where which who who's why will wish with without won't world would
        wouldn't yesterday you you'll you're you've young your yourself
    """,
    "es": """
        a adiós ahora al algo alma amor antes aquí así aunque ay ayer baila bailar besar beso besos bien
        bonita bonito cada calle canción cantar casa cielo como con conmigo contigo corazon corazón cuando
        cuándo cuánto cómo dame de decir dejes del desde después dice dime dolor donde dos día dónde el ella
        ellos en entonces entre era eran eras eres es esa ese eso esta estar este esto estoy estrella
        estrellas está están fue fuego fui fuiste gente gracias ha había hacer hacia hasta hay he hola hombre
        hoy la las le lejos libertad libre linda llegar llegó llorar lo los luna luz mal mar mañana me mi
        mientras mira mis mucho mujer mundo muy más mí mío nada nadie ni niña no noche noches nos nosotros
        nuestra nuestro nuestros nunca ojalá ojos olvidar olvido otra otro para perder perdí pero piel poco
        por porque porqué puedo que quedarme quien quiere quieres quiero quisiera qué recuerdo se sentir ser
        si siempre siento sin sobre sol sola solo somos son soy su sueño sueños sé sí sólo también tampoco tan
        tanto te tener tengo tiempo tiene tienes tierra toda todo todos triste tu tus tuyo tú un una unas unos
        va vamos vas ven ver vez vida viento vivir volver voy vuelve vuelvo y ya yo él
    """,
    "fr": """
        adieu aime aimer ainsi alors amour amours après au aujourd'hui aussi aux avais avait avant avec avez
        avons beaucoup belle bien bonheur bonjour bonne bras c c'est car ce cela ces cet cette ceux chanson
        chante chanter chaque chérie ciel coeur comme comment cœur d dans danse danser dansons de demain
        depuis des deux dire dis donc dont du dès elle elles en encore entre es est et eux faire fait faut
        fleurs fois fort ici il ils j j'ai jamais je jour jours jusqu l l'amour la le les leur leurs libre
        loin lui lumière là m ma main mais mal manque manques me mer merci mes mienne mieux moi moins mon
        monde mort mots même n ne nos notre nous nuit nuits on ont ou oublie oublier oublié oui où par parce
        parfois parle parler parti partir pas personne petit petite peu peur peut peux plein pleure pleurer
        plus pour pourquoi près qu quand que quel quelle qui quoi regard regarde reste rester rien rue rêve
        rêver rêves s sa sais sait sans se sera serai ses seul seule si soir sois soleil sommes son sont sous
        souvent suis sur t ta tant te tellement temps tes toi ton toujours tous tout toute toutes triste trop
        tu un une va vais vas vent vers veux vie viens ville voir vois voix vos votre vous vrai y yeux à ça
        étaient étais était être
    """,
    "hu": """
        a ahol akarok akarsz aki alatt ami amikor annyi az azt azért be benne benned boldog boldogság bár csak
        csend csillag de egy egyszer együtt el előtt ember emberek engem ez ezt fel felett fiú fut fáj fény
        föld gyere gyönyörű ha hagyd hallom haza hiszen hogy hol holnap hozzám ide idő igen is itt jó jöjj jön
        kell kevés ki kérem kérlek két könny köszönöm között le lehet lelkem lenne lesz leszek lány lásd látok
        látom lépj ma meg mert messze mi miatt mienk mikor milyen mind minden mindenhol mindig mint mondd
        mondom most már még mégis míg nagy nagyon nap napok ne neked nekem neki nekünk nem nincs nélkül nézd
        olyan ott pedig repülj rám régen s se sehol sem semmi soha sok szabad szabadság szemed szemem szerelem
        szeret szeretlek szeretném szia szomorú szép szív szívem szól talán te tegnap tied tudod tudom tudsz
        táncolj téged tél tűz ut utca után vagy vagyok vagyunk van veled velem világ virág vissza volt voltam
        voltál vár várok vége álmok álom ám ég éjjel éjszaka élet életem élni én érzek érzem és ó úgy újra út
        ő
    """,
    "it": """
        a abbiamo accanto adesso agli ai al alla allora amarti amo amore anche ancora andare andiamo anima
        avete baci balla ballare bambina bella bellissima bene c canta cantare canzone casa che chi ci ciao
        cielo come con cosa cose così cuore cuori da dai dal dalla davvero degli dei del della delle dentro di
        dimentica dimenticare dimmi dolce dolore domani dove due e ed era eravamo eri ero fa facciamo fammi
        felice felicità fino fra fuoco fuori gente gioia giorni giorno già gli grazie ha hai hanno ho i il in
        insieme invece io l la lacrime lascia lasciami le lei libero libertà lo lontana lontano loro luce lui
        luna là ma mai mano mare me mente mentre mi mia mie mio molto mondo n ne negli nei nel nella nessuno
        niente no noi non nostra nostro notte notti nulla occhi oggi ogni ognuno ora parlare per perché però
        piangere piove più poco poi porta puoi può qualcosa qualcuno quale quali quando quanto quella quelli
        quello questa questi questo qui ragazza ragazzo sai sarà sarò se sei sempre sento senza sera si sia
        sogni sogno sola sole solo sono sopra sotto sta stai stanotte stella stelle stiamo sto strada su sui
        sul sulla sulle sì tanto te tempo ti triste tu tua tue tuo tutta tutti tutto un una uno va vai vento
        via vieni vita vivere voglio voi vorrei è
    """,
    "nl": """
        aan al alleen alles als altijd bedankt ben bent bij brand dag dan dank dat de deze die dit dochter doe
        doen door dromen droom dus een eens elke en er ergens ga gaan gaat geef geen geluk gelukkig geweest
        gewoon gisteren goed grote haar had hadden hallo hand hart heb hebben heeft hem hemel hen het hier hij
        hoe hoor hou houden hun iemand iets ik in is ja jaar je jij jongen jou jouw jullie kan kijk kijken
        kleine kom komt kunnen laat lang leven licht lief liefde maan maar me mee meer meisje met mij mijn
        moet moeten mooi mooie morgen n naar nacht nee niemand niet niets nog nooit nu of ogen om omdat onder
        ons onze ook op over overal samen schat slaap sta stil straat te tegen terug tijd toch toe tot tranen
        uit van vandaag vannacht veel ver verdriet vergeet voel voelen voor vrij vrijheid vuur waar waarom
        wacht wanneer waren was wat we weer weet weg welke wereld weten wie wij wil wilde willen woord woorden
        worden wordt zal ze zee zeg zeggen zelfde zich zie zien zij zijn zing zo zon zonder zou zouden zullen
        één
    """,
    "pl": """
        a aby ale ani bardzo bez bo być był była byłam byłem było były chcesz chcę chodź choć chłopak ci
        ciebie cię co coś czas czasem czemu cześć czuję czy daj dla dlaczego dni do dobry dobrze dom domu
        droga drogi dużo dziewczyna dzień dzisiaj dziękuję dziś gdy gdzie gwiazdy i ich ja jak jaka jaki jakie
        jednak jego jej jest jestem jesteś jesteśmy jeszcze jutro już każda każdy kiedy kocham kochana
        kochanie kochany kochasz kto ktoś która który lecz ludzie ma mam masz mało mi między miłości miłość
        mnie mną mogę moim moja moje może mu my myślę mój na nad nami nas nasz nasze nic nich nie niebo niej
        nigdy nigdzie nim nimi nią noc nocy nocą o oczy od ogień on ona oni piękna piękny po pod powiedz
        powiem proszę przed przez przy raz razem sam sama sen serca serce się sny sobie swój szczęście są
        słowa słońce słyszę słów ta tak taka taki także tam tańcz te tego tej ten teraz to tobie tobą tu tutaj
        twoim twoja twoje twój ty tyle tylko u w wciąż wczoraj we wiatr widzę wiem wiesz więc wolność wróć
        wszyscy wszystko wszędzie z za zawsze ze znów został zostań łzy śpiewaj świat świata że żeby życia
        życie żyć
    """,
    "pt": """
        a agora ai ainda alma além amada amanhã amar amo amor ao aos aqui as assim até beijo beijos bem boa
        bom cada caminho canta cantar canção canções cedo chorar chão cidade coisa com como cor coração céu da
        dança dançar das de deixa deixar dela dele dentro depois desde dessa desse dia dias disse dizer do dor
        dos e ei ela ele eles em embora entre então era eram esquecer essa esse esta estava este estou
        estrelas está eu fala faz fazer felicidade feliz fica ficar fim fogo foi fora foram gente gosto
        gostoso hoje há isso já la lembrar levar longe lua lugar luz lá mais mal mar mas me menina mesmo meu
        meus mim minha minhas moça moço muito mundo na nada nas nem nesta neste ninguém no noite noites nos
        nossa nosso nossos num nunca não nós o obrigado oi olhar olhos onde ontem os ou outra outro paixão
        para pela pelo perto pode por porque posso pra praia preciso qualquer quando quantas quanto que quem
        quer querer querida quero rua sabe samba saudade saudades se sei sem sempre sentir ser será seus sim
        sob sobre sol solidão somos sonho sonhos sou sozinho sua suas são só também tanto tarde te tem tempo
        tenho ter teu tinha triste tua tudo tá tão um uma vai vamos vem vento ver vez vida viver você vocês
        vou voz é és
    """,
    "tr": """
        acı ama aman arasında artık ay ayrılık aşk aşkım aşkın bak bana bazen beklerim belki ben bende beni
        benim bile bilir biliyor biliyorum bilmem bin bir biraz biri biz bize bizi bizim bu bugün bütün büyük
        canım da daha dans dağ de deli deniz derdim değil değilim değilsin dur duy dön dönme dün dünya en eski
        et eğer fakat gece gel geldi gelir gelme gibi gider git gitme gökyüzü gönlüm gönül gör görüyorum göz
        gözler gözlerim gözlerin gülüm gün güneş güzel güzelim hayat haydi hep her hissediyorum hiç hiçbir ile
        insan insanlar istemem ister istiyorum iyi içim içimde için kadar kal kalbim kaldı kalp kara kim kimse
        kız lütfen mi mu mutlu mutluluk mutsuz mü mı nasıl ne neden nerede o ol oldu olsa olsun olur on ona
        onda onlar onları onu oğlan rüya rüzgar sabah sana selam sen sende seni senin sensiz ses sev sevda
        sevdim sevgili sevgilim seviyorum sizi sonra sonunda söyle tatlım tek teşekkürler uzak var vardı
        vardım ve ya yalan yalnız yan yar yarın yaz yağmur yaşamak yeni yerde yeter yine yok yol yollar yürek
        yüreğim yıldız zaman çok çünkü önce özgür özgürlük şarkı şarkılar şimdi şu
    """,
}

# Sung in every language: a line of these alone says nothing.
SYLLABLES = frozenset(
    """
    ah aha ahh ay aye ba baby bam bang bom boom bop bum da dee di dididi do doo du dum eh eo ey ha hah
    haha hallelujah he heh hey hm hmm ho hoo huh ja la laa lala lalala le li lo loo mm mmm na nana nanana
    oh ohh oho ohoh ok okay ole olé oo ooh ooo oooh pa ra sha shala ta tra trala tralala uh uhh um whoa wo
    woah woh woo wow ya yah yay yea yeah yeh yeye yo
    """.split()  # noqa: SIM905
)
