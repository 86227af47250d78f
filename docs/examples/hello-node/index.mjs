export const handler = async (event, context) => ({
  statusCode: 200,
  body: JSON.stringify('Hello World!'),
});
