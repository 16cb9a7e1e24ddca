// Reading values off the curves with the pointer; everything is there without it too.
for(const svg of document.querySelectorAll('svg[data-s]')){
 const [x0,x1]=svg.dataset.x.split(',').map(Number),[l,r,t,b]=svg.dataset.box.split(',').map(Number);
 const series=svg.dataset.s.split('|').map(s=>{const [name,css,p]=s.split(';');
  return {name,css,points:p.split(',').map(q=>q.split(':').map(Number))}});
 const line=document.createElementNS('http://www.w3.org/2000/svg','line');
 line.setAttribute('class','cursor');line.setAttribute('y1',t);line.setAttribute('y2',b);line.style.display='none';
 svg.append(line);const tip=document.createElement('div');tip.className='tip';svg.parentNode.append(tip);
 svg.addEventListener('pointermove',e=>{const box=svg.getBoundingClientRect(),w=svg.viewBox.baseVal.width;
  const x=x0+((e.clientX-box.left)/box.width*w-l)/(r-l)*(x1-x0);
  const rows=series.map(s=>[s.name,s.points.reduce((a,c)=>Math.abs(c[0]-x)<Math.abs(a[0]-x)?c:a)]);
  const at=rows[0][1][0],px=l+(at-x0)/(x1-x0)*(r-l);line.setAttribute('x1',px);line.setAttribute('x2',px);
  line.style.display='';tip.textContent='';const head=document.createElement('b');head.textContent='step '+at;
  tip.append(head,...rows.map(([n,[,y]])=>{const d=document.createElement('div');
   d.textContent=n+' '+Number(y.toPrecision(4));return d}));
  tip.style.display='block';const left=px/w*box.width+16;
  tip.style.left=Math.min(left,box.width-tip.offsetWidth)+'px';tip.style.top='44px'});
 svg.addEventListener('pointerleave',()=>{line.style.display=tip.style.display='none'});
}
